-- wrk: every request is the webhook of one payment, signed beforehand.
-- wrk … -s webhooks.lua URL -- PLAN, where PLAN is a Lua file that returns a table:
--   signed  a file with "order id signature" a line, each line a request; past the last one nothing is sent
--   head    the bytes of the request up to the signature
--   parts   the rest of the request around each place of the order's id
local plan, lines

function init(arguments)
  plan = dofile(arguments[1])
  lines = io.open(plan.signed)
end

function request()
  local line = lines:read('*l')
  if not line then return '' end -- all are sent: nothing more goes out
  local order, signature = line:match('(%S+) (%S+)')
  return plan.head .. signature .. table.concat(plan.parts, order)
end
