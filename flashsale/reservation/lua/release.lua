-- release: units of orders of one sale go back, each movement of an order once. A hold keeps the number of the last one
-- and is never deleted, so that its id stays used and the same call may be sent again. One order never fails another.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number; read only
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
--       4 supply     hash    SKU index -> supply; read only
--       5 quota      hash    quota field -> units taken
--       6 holds      hash    order id's last 12 bytes -> hold: letter, 21 bytes, the last number (3) if any
--       7 journal    stream  one entry a call that moved something
--       8 limits     hash    field (13 bytes) -> what is used of a limit
-- ARGV  1 epoch   2 outbox row, an integer
--       3 MessagePack, at most 200 orders: {{order id in hex, its last 12 bytes, number of the movement, hold's letter
--         after it, {index, units, ...}, {quota field, units to give back, ...}, whether quota goes back}, ...}; where
--         more goes back than units of the common pool, three more follow, false where there is none:
--           {index, channel, units, ...}: of the units those that go to a channel's guarantee
--           {field of the limits, lane, day}: the lane's day has a parcel less
--           {field of the limits, identity in hex, year, amount}: the identity has imported less
--         An order may have no lines if its import limit gets something back.
-- Answers {"ok", {an outcome an order}, journal entry's id or "" if no order was "ok"}
--     "ok"       its units went back
--     "already"  the hold has this number or a later one
--     "unknown"  no such sale or no such hold
--     "beyond"   more would be available than was supplied: the lines are not this order's
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  partition.written, stock, quota, holds, limits; journals those that are "ok" as
--   {"kind":"release","sale":n,"outbox":row,"orders":[{"order":hex id,"number":n,"lines":[[index,units],...],
--    "quota_back":bool, and where there are any "drawn":[[index,channel,units],...], "lane":[lane,day],
--    "limit":[identity in hex,year,amount]},...]}
local UNPACK = 4000 -- Lua's stack takes about 8,000 values
local RANK = {h = 0, e = 1, p = 2, s = 3, d = 4, u = 4, c = 5} -- as in holds.py

local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local function read(key, names) -- name -> value, false where there is none
  local values = {}
  for first = 1, #names, UNPACK do
    local last = math.min(first + UNPACK - 1, #names)
    local found = redis.call('HMGET', key, unpack(names, first, last))
    for i = first, last do values[names[i]] = found[i - first + 1] end
  end
  return values
end

local function write(key, pairs_of_it)
  for first = 1, #pairs_of_it, UNPACK do
    redis.call('HSET', key, unpack(pairs_of_it, first, math.min(first + UNPACK - 1, #pairs_of_it)))
  end
end

local function merged(before, after) -- the letter of the higher rank; what was extended stays extended
  local low, lower = string.lower(before), string.lower(after)
  local letter = (RANK[lower] or 0) > (RANK[low] or 0) and lower or low
  return (low ~= before or lower ~= after) and string.upper(letter) or letter
end

local orders = cmsgpack.unpack(ARGV[3])
if #orders > 200 then return redis.error_reply('ERR release: more than 200 orders') end
local ids, skus, fields, known, pools, counters = {}, {}, {}, {}, {}, {}
for i = 1, #orders do
  local lines, quota = orders[i][5], orders[i][6]
  local drawn, lane, limit = orders[i][8], orders[i][9], orders[i][10]
  if #lines == 0 and not limit then return redis.error_reply('ERR release: an order without lines') end
  ids[i] = orders[i][2]
  for l = 1, #lines, 2 do
    lines[l] = string.format('%.0f', lines[l])
    if not known[lines[l]] then
      known[lines[l]] = true
      skus[#skus + 1] = lines[l]
    end
  end
  for f = 1, #quota, 2 do fields[#fields + 1] = quota[f] end
  for d = 1, drawn and #drawn or 0, 3 do
    drawn[d] = string.format('%.0f', drawn[d])
    pools[#pools + 1] = drawn[d] .. '.' .. string.format('%.0f', drawn[d + 1])
  end
  if lane then counters[#counters + 1] = lane[1] end
  if limit then counters[#counters + 1] = limit[1] end
end

local number = redis.call('HGET', KEYS[2], 'number')
local holds = number and read(KEYS[6], ids) or {}
local available, supply, used = read(KEYS[3], skus), read(KEYS[4], skus), read(KEYS[5], fields)
for _, sku in ipairs(skus) do available[sku], supply[sku] = tonumber(available[sku]), tonumber(supply[sku]) end
local guaranteed, limits = read(KEYS[3], pools), read(KEYS[8], counters)

local outcomes, moved, touched, changed, quotas, filled, lowered = {}, {}, {}, {}, {}, {}, {}
for i = 1, #orders do
  local order_id, id, change, letter, lines, quota, quota_back, drawn, lane, limit = unpack(orders[i], 1, 10)
  local hold, outcome = holds[id], 'ok'
  if not hold then outcome = 'unknown'
  elseif #hold == 25 and struct.unpack('>I3', hold, 23) >= change then outcome = 'already'
  else
    for l = 1, #lines, 2 do
      local left, most = available[lines[l]], supply[lines[l]]
      if not left or not most or left + lines[l + 1] > most then
        outcome = 'beyond'
        for done = 1, l - 2, 2 do available[lines[done]] = available[lines[done]] - lines[done + 1] end
        break
      end
      available[lines[l]] = left + lines[l + 1]
    end
  end
  if outcome == 'ok' and drawn then -- what went to the common pool above and is a guarantee's moves on
    for d = 1, #drawn, 3 do
      local pool = drawn[d] .. '.' .. string.format('%.0f', drawn[d + 1])
      available[drawn[d]] = available[drawn[d]] - drawn[d + 2]
      guaranteed[pool] = (tonumber(guaranteed[pool]) or 0) + drawn[d + 2]
      filled[pool] = true
      drawn[d] = {tonumber(drawn[d]), drawn[d + 1], drawn[d + 2]}
    end
  end
  if outcome == 'ok' then
    local shown = {}
    for l = 1, #lines, 2 do
      shown[#shown + 1] = {tonumber(lines[l]), lines[l + 1]}
      touched[lines[l]] = true
    end
    for f = 1, #quota, 2 do
      used[quota[f]] = math.max(0, (tonumber(used[quota[f]]) or 0) - quota[f + 1])
      quotas[quota[f]] = true
    end
    holds[id] = merged(string.sub(hold, 1, 1), letter) .. string.sub(hold, 2, 22) .. struct.pack('>I3', change)
    changed[id] = true
    local entry = {order = order_id, number = change, lines = shown, quota_back = quota_back}
    if drawn then
      entry.drawn = {}
      for d = 1, #drawn, 3 do entry.drawn[#entry.drawn + 1] = drawn[d] end
    end
    if lane then
      limits[lane[1]] = math.max(0, (tonumber(limits[lane[1]]) or 0) - 1)
      lowered[lane[1]], entry.lane = true, {lane[2], lane[3]}
    end
    if limit then
      limits[limit[1]] = math.max(0, (tonumber(limits[limit[1]]) or 0) - limit[4])
      lowered[limit[1]], entry.limit = true, {limit[2], limit[3], limit[4]}
    end
    moved[#moved + 1] = entry
  end
  outcomes[i] = outcome
end
if #moved == 0 then return {'ok', outcomes, ''} end

local movement = cjson.encode({kind = 'release', sale = tonumber(number), outbox = tonumber(ARGV[2]), orders = moved})
movement = string.gsub(movement, '"lines":{}', '"lines":[]') -- an order without lines: cjson knows no empty array
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)
local stock, quota, letters, limited = {}, {}, {}, {}
for sku in pairs(touched) do
  stock[#stock + 1], stock[#stock + 2] = sku, string.format('%.0f', available[sku])
end
for pool in pairs(filled) do
  stock[#stock + 1], stock[#stock + 2] = pool, string.format('%.0f', guaranteed[pool])
end
for field in pairs(lowered) do
  limited[#limited + 1], limited[#limited + 2] = field, string.format('%.0f', limits[field])
end
for field in pairs(quotas) do
  quota[#quota + 1], quota[#quota + 2] = field, string.format('%.0f', used[field])
end
for id in pairs(changed) do
  letters[#letters + 1], letters[#letters + 2] = id, holds[id]
end

for _, i in ipairs(#limited > 0 and {1, 3, 5, 6, 8} or {1, 3, 5, 6}) do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[7], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[7]} end

local entry = redis.call('XADD', KEYS[7], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
write(KEYS[3], stock)
write(KEYS[5], quota)
write(KEYS[6], letters)
write(KEYS[8], limited)
return {'ok', outcomes, entry}
