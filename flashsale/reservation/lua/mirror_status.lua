-- mirror_status: tells holds what became of their orders, for replays. No units move and nothing is journalled: the
-- ledger knows it already, and a rebuild writes its letters.
--
-- KEYS  1 partition  hash    epoch; read only
--       2 holds      hash    order id's last 12 bytes -> hold, a letter first
-- ARGV  1 epoch   2 MessagePack {order id's last 12 bytes, letter, ...}; an upper-case letter says: extended
-- Answers {"ok", holds changed}   a letter replaces one of a lower rank, what is extended stays so, unknown ids are
--   passed over
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  holds
local UNPACK = 4000 -- Lua's stack takes about 8,000 values
local RANK = {h = 0, e = 1, p = 2, s = 3, d = 4, u = 4, c = 5} -- as in holds.py

if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return {'fenced'} end

local function merged(before, after) -- the letter of the higher rank; what was extended stays extended
  local low, lower = string.lower(before), string.lower(after)
  local letter = (RANK[lower] or 0) > (RANK[low] or 0) and lower or low
  return (low ~= before or lower ~= after) and string.upper(letter) or letter
end

local given = cmsgpack.unpack(ARGV[2])
local ids, holds, changed = {}, {}, {}
for i = 1, #given, 2 do ids[#ids + 1] = given[i] end
for first = 1, #ids, UNPACK do
  local last = math.min(first + UNPACK - 1, #ids)
  local found = redis.call('HMGET', KEYS[2], unpack(ids, first, last))
  for i = first, last do holds[ids[i]] = found[i - first + 1] end
end
for i = 1, #given, 2 do
  local id, hold = given[i], holds[given[i]]
  if hold then
    local before = string.sub(hold, 1, 1)
    local letter = merged(before, given[i + 1])
    if letter ~= before then
      holds[id] = letter .. string.sub(hold, 2)
      changed[id] = true
    end
  end
end

local written = {}
for id in pairs(changed) do
  written[#written + 1], written[#written + 2] = id, holds[id]
end
if #written == 0 then return {'ok', 0} end
if not redis.acl_check_cmd('HSET', KEYS[2], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[2]} end
for first = 1, #written, UNPACK do
  redis.call('HSET', KEYS[2], unpack(written, first, math.min(first + UNPACK - 1, #written)))
end
return {'ok', #written / 2}
