-- wrk: every request is a new shopper's order, or a page, or each connection's page and order in turn.
-- wrk … -s crowd.lua URL -- PLAN, where PLAN is a Lua file that returns a table:
--   kind    "orders", "pages" or "alternating"
--   page    the bytes of the page's request
--   head, middle, tails, tokens    an order is head .. next line of the file tokens .. middle .. number .. a tail in turn
--   pause_ms    a connection's mean pause between an answer and its next request; without it none
--   again   whether the tokens may be used from the first again (only where no order is decided: the nginx yardstick)
local plan, lines, number = nil, nil, 0
local due, first, last = {}, 1, 0

local function order()
  local token = lines:read('*l')
  if not token then
    if not plan.again then error('the tokens are used up: mint more') end
    lines:seek('set')
    token = lines:read('*l')
  end
  number = number + 1
  return plan.head .. token .. plan.middle .. number .. plan.tails[number % #plan.tails + 1]
end

local function page() return plan.page end

-- wrk asks for a connection's next request in the order in which it handed over the answers; so what is due next waits
-- in a queue: after a page an order, after an order a page.
local function in_turn()
  if first > last then
    number = number + 1
    return number % 2 == 0 and page() or order()
  end
  local next_request = due[first]
  due[first] = nil
  first = first + 1
  return next_request()
end

function init(arguments)
  plan = dofile(arguments[1])
  lines = plan.tokens and io.open(plan.tokens)
  if plan.kind == 'alternating' then
    request = in_turn
    response = function(status)
      last = last + 1
      due[last] = status == 200 and order or page
    end
  else
    request = plan.kind == 'pages' and page or order
  end
  if plan.pause_ms then -- unevenly, or all connections would go on in step
    delay = function() return plan.pause_ms * (0.5 + math.random()) end
  end
end
