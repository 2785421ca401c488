-- move_pool: what channels' guarantees have beyond a cap goes to the common pool. Said again, it moves nothing more.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number; read only
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
--       4 journal    stream
-- ARGV  1 epoch
--       2 MessagePack {index, channel, cap, ...}: at most 1,000; units that the channel may keep, from 0; no pair twice
-- Answers {"ok", units moved, journal entry's id or "" if nothing moved}
--   {"unknown"}   no such sale
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  partition.written, stock; journals {"kind":"move","sale":n,"moves":[[index,channel,units],...]}
local UNPACK = 4000 -- Lua's stack takes about 8,000 values

local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end
local number = redis.call('HGET', KEYS[2], 'number')
if not number then return {'unknown'} end

local caps = cmsgpack.unpack(ARGV[2])
if #caps > 3000 then return redis.error_reply('ERR move_pool: more than 1000 guarantees') end
local moves, stock, common, moved = {}, {}, {}, 0
for i = 1, #caps, 3 do
  local sku = string.format('%.0f', caps[i])
  local field = sku .. '.' .. string.format('%.0f', caps[i + 1])
  local left = tonumber(redis.call('HGET', KEYS[3], field) or '0')
  local before = common[sku] or tonumber(redis.call('HGET', KEYS[3], sku))
  local cap = caps[i + 2]
  if cap >= 0 and left > cap and before then
    common[sku] = before + left - cap
    moves[#moves + 1] = {caps[i], caps[i + 1], left - cap}
    moved = moved + left - cap
    stock[#stock + 1], stock[#stock + 2] = field, string.format('%.0f', cap)
  end
end
if #moves == 0 then return {'ok', 0, ''} end
for sku, units in pairs(common) do
  stock[#stock + 1], stock[#stock + 2] = sku, string.format('%.0f', units)
end

local movement = cjson.encode({kind = 'move', sale = tonumber(number), moves = moves})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for _, i in ipairs({1, 3}) do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[4], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[4]} end

local entry = redis.call('XADD', KEYS[4], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
for first = 1, #stock, UNPACK do
  redis.call('HSET', KEYS[3], unpack(stock, first, math.min(first + UNPACK - 1, #stock)))
end
return {'ok', moved, entry}
