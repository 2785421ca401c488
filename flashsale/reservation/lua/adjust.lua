-- adjust: compares and sets a SKU's supply. The difference is added to the common pool, in the same instant.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number; read only
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
--       4 supply     hash    SKU index -> supply
--       5 journal    stream
-- ARGV  1 epoch   2 SKU index   3 to: the new supply, 0 to 10^9   4 expect: the supply that it must have now
-- Answers {"ok", supply, available (in all pools), journal entry's id or "" if `to` is what it was}
--   {"mismatch", supply, available}   the supply is not `expect`
--   {"taken", supply, available, guaranteed}   `to` is below what is taken (supply - available) or guaranteed to channels
--   {"unknown"} no such sale   {"unknown-sku"} no such SKU in it
--   {"fenced"} / {"denied", command}
-- All but "ok": nothing was written.
-- Writes  partition.written, stock, supply; journals {"kind":"adjust","sale":n,"sku":index,"delta":d,"supply":new}
local CHANNELS = 255 -- as many as there may ever be: their numbers are 1 to this

local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local number = redis.call('HGET', KEYS[2], 'number')
if not number then return {'unknown'} end
local sku, to, expect = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local supply = tonumber(redis.call('HGET', KEYS[4], sku))
local common = tonumber(redis.call('HGET', KEYS[3], sku))
if not supply or not common then return {'unknown-sku'} end
local fields, guaranteed = {}, 0
for channel = 1, CHANNELS do fields[channel] = sku .. '.' .. channel end
for _, units in ipairs(redis.call('HMGET', KEYS[3], unpack(fields))) do guaranteed = guaranteed + (tonumber(units) or 0) end
local available = common + guaranteed
if supply ~= expect then return {'mismatch', supply, available} end
local delta = to - supply
if common + delta < 0 then return {'taken', supply, available, guaranteed} end
if delta == 0 then return {'ok', supply, available, ''} end
common, available = common + delta, available + delta

local movement = cjson.encode({kind = 'adjust', sale = tonumber(number), sku = tonumber(sku),
  delta = delta, supply = to})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for _, i in ipairs({1, 3, 4}) do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[5], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[5]} end

local entry = redis.call('XADD', KEYS[5], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[3], sku, string.format('%.0f', common))
redis.call('HSET', KEYS[4], sku, string.format('%.0f', to))
return {'ok', to, available, entry}
