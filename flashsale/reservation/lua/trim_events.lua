-- trim_events: cuts off the stream of events what has been applied, and counts its bytes out of what waits.
--
-- KEYS  1 events  stream  as append_events writes it
--       2 state   hash    written and trimmed (bytes)
-- ARGV  1 the last entry that has been applied   2 the id behind it, the first to keep
-- Answers {"ok", entries cut}
--   {"unknown"}           that entry is not there (cut before, or of another stream): nothing was written
--   {"denied", command}   nothing was written
-- Writes  events, state.trimmed (never backwards). Idempotent. XTRIM comes first: it is allowed where memory is used up,
-- and after a script's first write so is HSET.
local last = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not last then return {'unknown'} end
local total
for i = 1, #last[2], 2 do
  if last[2][i] == 'w' then total = last[2][i + 1] end
end
local trimmed = tonumber(redis.call('HGET', KEYS[2], 'trimmed') or '0')

if not redis.acl_check_cmd('XTRIM', KEYS[1], 'MINID', ARGV[2]) then return {'denied', 'XTRIM ' .. KEYS[1]} end
if not redis.acl_check_cmd('HSET', KEYS[2], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[2]} end

local cut = redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
if total and tonumber(total) > trimmed then redis.call('HSET', KEYS[2], 'trimmed', total) end
return {'ok', cut}
