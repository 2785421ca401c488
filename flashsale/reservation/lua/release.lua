-- release: an order's units go back, once. The hold's state decides: held becomes released, never deleted, so that the
-- id stays used and the same release may be sent again.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number; read only
--       3 stock      hash    SKU index -> available units
--       4 supply     hash    SKU index -> supply; read only
--       5 quota      hash    quota field -> units taken
--       6 holds      hash    order id's last 12 bytes -> hold ("h" or "r" first)
--       7 journal    stream
-- ARGV  1 epoch   2 movement id (printable)   3 order id, hex   4 order id's last 12 bytes
--       5 MessagePack {index, quantity, ...}: every line of the order, ascending as the order has them
--       6 MessagePack {quota field, units, ...}: the quota to give back; empty where it stays used
-- Answers {"ok", journal entry's id}
--   {"already"}        the units went back before: nothing to do
--   {"unknown"}        no such sale or no such hold
--   {"beyond", index}  more would be available than was supplied: the lines are not this order's
--   {"fenced"} / {"denied", command}
-- All but "ok": nothing was written.
-- Writes  partition.written, stock, quota, holds; journals
--   {"kind":"release","sale":n,"movement":id,"order":hex id,"lines":[[index,quantity],...],
--    "quota_back":whether quota was given back}
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local number = redis.call('HGET', KEYS[2], 'number')
local hold = redis.call('HGET', KEYS[6], ARGV[4])
if not number or not hold then return {'unknown'} end
if string.sub(hold, 1, 1) == 'r' then return {'already'} end

local given = cmsgpack.unpack(ARGV[5])
local lines, available, stock = {}, {}, {}
for i = 1, #given, 2 do
  local sku, quantity = string.format('%.0f', given[i]), given[i + 1]
  lines[#lines + 1] = {given[i], quantity}
  local left = available[sku] or tonumber(redis.call('HGET', KEYS[3], sku))
  local supply = tonumber(redis.call('HGET', KEYS[4], sku))
  if not left or not supply or left + quantity > supply then return {'beyond', given[i]} end
  available[sku] = left + quantity
end
for sku, units in pairs(available) do
  stock[#stock + 1] = sku
  stock[#stock + 1] = string.format('%.0f', units)
end
if #stock == 0 then return redis.error_reply('ERR release: an order without lines') end

local given_back = cmsgpack.unpack(ARGV[6])
local quota = {}
for i = 1, #given_back, 2 do
  local used = tonumber(redis.call('HGET', KEYS[5], given_back[i]) or '0')
  quota[#quota + 1] = given_back[i]
  quota[#quota + 1] = string.format('%.0f', math.max(0, used - given_back[i + 1]))
end

local movement = cjson.encode({kind = 'release', sale = tonumber(number), movement = ARGV[2],
  order = ARGV[3], lines = lines, quota_back = #quota > 0})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for _, i in ipairs({1, 3, 5, 6}) do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[7], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[7]} end

local entry = redis.call('XADD', KEYS[7], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[3], unpack(stock))
if #quota > 0 then redis.call('HSET', KEYS[5], unpack(quota)) end
redis.call('HSET', KEYS[6], ARGV[4], 'r' .. string.sub(hold, 2))
return {'ok', entry}
