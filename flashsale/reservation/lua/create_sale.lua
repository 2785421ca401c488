-- create_sale: makes a sale, or gives an existing one the SKUs that it lacks and the catalogue's window. What exists
-- keeps its units, status and suspensions, and a closed sale its window, so that the same call may be sent again.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number, status, opens_at, closes_at (ms), suspended
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
--       4 supply     hash    SKU index -> supply
--       5 journal    stream
-- ARGV  1 epoch   2 sale number   3 opens_at, ms   4 closes_at, ms
--       5 MessagePack {index, units, index, units, ...}: the supply of each SKU, 0 to 10^9
--       6 MessagePack {index, channel, units, ...}: of the supply what is a channel's guarantee; no pair twice, and no
--         more of a SKU than its supply. Only those of SKUs that are added count
-- Answers {"ok", number of SKUs added, journal entry's id or "" if nothing changed}
--   {"mismatch", number}   the sale exists under another number: nothing was written
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  partition.written, state, stock, supply; journals
--   {"kind":"create","sale":n,"supply":{"index":units added},"opens_at":ms,"closes_at":ms,
--    "guarantees":[[index,channel,units],...] if there are any}
local UNPACK = 4000 -- Lua's stack takes about 8,000 values

local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local state = redis.call('HMGET', KEYS[2], 'number', 'opens_at', 'closes_at', 'status')
local exists = state[1]
if exists and state[1] ~= ARGV[2] then return {'mismatch', tonumber(state[1])} end
local opens_at, closes_at = ARGV[3], ARGV[4]
if state[4] == 'closed' then opens_at, closes_at = state[2], state[3] end

local given = cmsgpack.unpack(ARGV[5])
local known = {}
local fields = redis.call('HKEYS', KEYS[4])
for i = 1, #fields do known[fields[i]] = true end
local added, units, common = {}, {}, {}
for i = 1, #given, 2 do
  local sku = string.format('%.0f', given[i])
  if not known[sku] then
    known[sku] = true
    added[#added + 1] = sku
    added[#added + 1] = string.format('%.0f', given[i + 1])
    units[sku], common[sku] = given[i + 1], given[i + 1]
  end
end

local guaranteed, stock, guarantees = cmsgpack.unpack(ARGV[6]), {}, nil
for i = 1, #guaranteed, 3 do
  local sku = string.format('%.0f', guaranteed[i])
  if common[sku] then
    common[sku] = common[sku] - guaranteed[i + 2]
    if common[sku] < 0 then return redis.error_reply('ERR create_sale: more is guaranteed than there is') end
    stock[#stock + 1] = sku .. '.' .. string.format('%.0f', guaranteed[i + 1])
    stock[#stock + 1] = string.format('%.0f', guaranteed[i + 2])
    guarantees = guarantees or {}
    guarantees[#guarantees + 1] = {guaranteed[i], guaranteed[i + 1], guaranteed[i + 2]}
  end
end
for sku, left in pairs(common) do
  stock[#stock + 1], stock[#stock + 2] = sku, string.format('%.0f', left)
end
if exists and #added == 0 and opens_at == state[2] and closes_at == state[3] then return {'ok', 0, ''} end

local movement = cjson.encode({kind = 'create', sale = tonumber(ARGV[2]), supply = units,
  opens_at = tonumber(opens_at), closes_at = tonumber(closes_at), guarantees = guarantees})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for i = 1, 4 do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[5], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[5]} end

local entry = redis.call('XADD', KEYS[5], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[2], 'opens_at', opens_at, 'closes_at', closes_at)
if not exists then redis.call('HSET', KEYS[2], 'number', ARGV[2], 'status', 'open', 'suspended', '') end
local function write(key, pairs_of_it)
  for first = 1, #pairs_of_it, UNPACK do
    redis.call('HSET', key, unpack(pairs_of_it, first, math.min(first + UNPACK - 1, #pairs_of_it)))
  end
end
write(KEYS[3], stock)
write(KEYS[4], added)
return {'ok', #added / 2, entry}
