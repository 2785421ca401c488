-- wrk: every request brings many orders of a sales channel, each a new shopper's with a reference of its own.
-- wrk … -s channel.lua URL -- PLAN, where PLAN is a Lua file that returns a table:
--   head    the request up to the value of Content-Length
--   orders  an order's JSON behind its opening brace, taken in turn
--   count   orders a request
--   prefix  of every reference
local plan, number = nil, 0

function init(arguments) plan = dofile(arguments[1]) end

function request()
  local parts = {}
  for place = 1, plan.count do
    number = number + 1
    parts[place] = '{"reference":"' .. plan.prefix .. '-' .. number .. '","shopper":"s' .. number .. '",'
      .. plan.orders[number % #plan.orders + 1]
  end
  local body = '{"orders":[' .. table.concat(parts, ',') .. ']}'
  return plan.head .. #body .. '\r\n\r\n' .. body
end
