-- set_returns: says of which SKUs units of open holds may come back, and when the first. Replaces what was said before;
-- nothing is journalled, for reserve.lua alone reads it, to tell a sold-out order when to ask again.
--
-- KEYS  1 partition  hash    epoch; read only
--       2 returns    hash    SKU index -> ms
-- ARGV  1 epoch   2 MessagePack {index, ms, index, ms, ...}
-- Answers {"ok", 1 or 0: whether that changed anything}
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  returns. DEL comes first: it is allowed where memory is used up, and after a script's first write so is HSET.
local UNPACK = 4000 -- Lua's stack takes about 8,000 values

if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {'fenced'} end

local given = cmsgpack.unpack(ARGV[2])
local before, known = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #before, 2 do known[before[i]] = before[i + 1] end
local same = #before == #given
for i = 1, #given do given[i] = string.format('%.0f', given[i]) end
for i = 1, #given, 2 do same = same and known[given[i]] == given[i + 1] end
if same then return {'ok', 0} end

if not redis.acl_check_cmd('DEL', KEYS[2]) then return {'denied', 'DEL ' .. KEYS[2]} end
if not redis.acl_check_cmd('HSET', KEYS[2], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[2]} end

redis.call('DEL', KEYS[2])
for first = 1, #given, UNPACK do
  redis.call('HSET', KEYS[2], unpack(given, first, math.min(first + UNPACK - 1, #given)))
end
return {'ok', 1}
