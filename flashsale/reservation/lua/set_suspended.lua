-- set_suspended: takes a SKU out of a sale for a while, or puts it back. Asking for what already is changes nothing.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number, suspended (",3,17,": SKU indices, ascending; "" = none)
--       3 supply     hash    SKU index -> supply; read only
--       4 journal    stream
-- ARGV  1 epoch   2 "suspend" or "unsuspend"   3 SKU index
-- Answers {"ok", suspended, journal entry's id or "" if nothing changed}
--   {"unknown"}       no such sale
--   {"unknown-sku"}   the sale has no such SKU
--   {"fenced"} / {"denied", command}
-- All but "ok": nothing was written.
-- Writes  partition.written, state.suspended; journals {"kind":"suspend" or "unsuspend","sale":n,"sku":index}
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local state = redis.call('HMGET', KEYS[2], 'number', 'suspended')
if not state[1] then return {'unknown'} end
local action, sku, before = ARGV[2], tonumber(ARGV[3]), state[2] or ''
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 0 then return {'unknown-sku'} end

local suspended = {}
local found = false
for index in string.gmatch(before, '%d+') do
  if tonumber(index) == sku then found = true else suspended[#suspended + 1] = tonumber(index) end
end
if found == (action == 'suspend') then return {'ok', before, ''} end
if action == 'suspend' then
  suspended[#suspended + 1] = sku
  table.sort(suspended)
end
local text = ''
if #suspended > 0 then text = ',' .. table.concat(suspended, ',') .. ',' end

local movement = cjson.encode({kind = action, sale = tonumber(state[1]), sku = sku})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for i = 1, 2 do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[4], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[4]} end

local entry = redis.call('XADD', KEYS[4], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[2], 'suspended', text)
return {'ok', text, entry}
