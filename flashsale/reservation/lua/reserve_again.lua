-- reserve_again: an order whose units went back takes them again, all or none, whatever the sale's window, status and
-- suspensions: its shopper has paid. Decided once for each movement, and journalled either way, so that what became of
-- it reaches the ledger by the journal alone.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number; read only
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
--       4 supply     hash    not read: the keys are release.lua's
--       5 quota      hash    quota field -> units taken
--       6 holds      hash    order id's last 12 bytes -> hold: letter, 21 bytes, the last number (3) if any
--       7 journal    stream
--       8 limits     hash    field (13 bytes) -> what is used of a limit
-- ARGV  1 epoch   2 outbox row, an integer
--       3 MessagePack {order id in hex, its last 12 bytes, number of the movement, hold's letter if the units are
--         taken, {index, units, ...}, {quota field, units, ...}, {each field's quota}, whether quota is taken again,
--         and false where there is none:
--           {index, channel, units, ...}: of the units those that the channel's guarantee gives as far as it has them,
--             the common pool the rest
--           {field of the limits, lane, day, capacity (0: none, below 0: no parcel goes)}: a parcel of the lane's day
--           {field of the limits, identity in hex, year, amount, annual (0: none)}: what the identity imports
-- Answers {"taken", journal entry's id}
--   {"refused", journal entry's id}   stock, quota, lane or import limit do not suffice: nothing moved, but the hold
--     has the number
--   {"already"}   the hold has this number or a later one
--   {"unknown"}   no such sale or no such hold
--   {"fenced"} / {"denied", command}
-- The last four: nothing was written.
-- Writes  partition.written, holds; if taken stock, quota, limits; journals {"kind":"reserve_again","sale":n,
--   "outbox":row,"order":hex id,"number":n,"lines":[[index,units],...],"taken":bool,"quota":bool}, and if it was taken
--   what there was of "drawn":[[index,channel,units],...], "lane":[lane,day], "limit":[identity in hex,year,amount]
local RANK = {h = 0, e = 1, p = 2, s = 3, d = 4, u = 4, c = 5} -- as in holds.py

local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local function merged(before, after) -- the letter of the higher rank; what was extended stays extended
  local low, lower = string.lower(before), string.lower(after)
  local letter = (RANK[lower] or 0) > (RANK[low] or 0) and lower or low
  return (low ~= before or lower ~= after) and string.upper(letter) or letter
end

local order_id, id, change, letter, lines, fields, quotas, with_quota, wanted, lane, import =
  unpack(cmsgpack.unpack(ARGV[3]), 1, 11)
if #lines == 0 then return redis.error_reply('ERR reserve_again: an order without lines') end
local number = redis.call('HGET', KEYS[2], 'number')
local hold = redis.call('HGET', KEYS[6], id)
if not number or not hold then return {'unknown'} end
if #hold == 25 and struct.unpack('>I3', hold, 23) >= change then return {'already'} end

local taken, shown, stock, quota, limited = true, {}, {}, {}, {}
local from_guarantee, drawn = {}, nil -- SKU index -> units; what of them is journalled
for d = 1, wanted and #wanted or 0, 3 do
  local pool = string.format('%.0f.%.0f', wanted[d], wanted[d + 1])
  local left = tonumber(redis.call('HGET', KEYS[3], pool) or '0')
  local units = math.min(left, wanted[d + 2])
  if units > 0 then
    from_guarantee[wanted[d]] = units
    drawn = drawn or {}
    drawn[#drawn + 1] = {wanted[d], wanted[d + 1], units}
    stock[#stock + 1], stock[#stock + 2] = pool, string.format('%.0f', left - units)
  end
end
for l = 1, #lines, 2 do
  local sku = string.format('%.0f', lines[l])
  local units = lines[l + 1] - (from_guarantee[lines[l]] or 0)
  local left = (tonumber(redis.call('HGET', KEYS[3], sku)) or 0) - units
  if left < 0 then taken = false end
  shown[#shown + 1] = {lines[l], lines[l + 1]}
  stock[#stock + 1], stock[#stock + 2] = sku, string.format('%.0f', left)
end
for f = 1, #fields, 2 do
  local used = (tonumber(redis.call('HGET', KEYS[5], fields[f])) or 0) + fields[f + 1]
  if used > quotas[(f + 1) / 2] then taken = false end
  quota[f], quota[f + 1] = fields[f], string.format('%.0f', used)
end

if lane then
  local parcels = (tonumber(redis.call('HGET', KEYS[8], lane[1])) or 0) + 1
  if lane[4] ~= 0 and parcels > lane[4] then taken = false end
  limited[1], limited[2] = lane[1], string.format('%.0f', parcels)
end
if import then
  local used = (tonumber(redis.call('HGET', KEYS[8], import[1])) or 0) + import[4]
  if import[5] ~= 0 and used > import[5] then taken = false end
  limited[#limited + 1], limited[#limited + 2] = import[1], string.format('%.0f', used)
end

local beside = taken and {drawn = drawn, lane = lane and {lane[2], lane[3]} or nil,
  limit = import and {import[2], import[3], import[4]} or nil} or {}
local movement = cjson.encode({kind = 'reserve_again', sale = tonumber(number), outbox = tonumber(ARGV[2]),
  order = order_id, number = change, lines = shown, taken = taken, quota = with_quota,
  drawn = beside.drawn, lane = beside.lane, limit = beside.limit})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)
local before = string.sub(hold, 1, 1)
local after = (taken and merged(before, letter) or before) .. string.sub(hold, 2, 22) .. struct.pack('>I3', change)

for _, i in ipairs(#limited > 0 and {1, 3, 5, 6, 8} or {1, 3, 5, 6}) do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[7], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[7]} end

local entry = redis.call('XADD', KEYS[7], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[6], id, after)
if not taken then return {'refused', entry} end
redis.call('HSET', KEYS[3], unpack(stock))
if #quota > 0 then redis.call('HSET', KEYS[5], unpack(quota)) end
if #limited > 0 then redis.call('HSET', KEYS[8], unpack(limited)) end
return {'taken', entry}
