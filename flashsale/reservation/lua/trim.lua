-- trim: cuts off the journal what the ledger has committed, and counts its bytes out of the backlog.
--
-- KEYS  1 partition  hash    epoch, written, trimmed
--       2 journal    stream
-- ARGV  1 epoch   2 first entry id to keep: the ledger's mark + 1   3 journal bytes up to the mark, its field w
-- Answers {"ok", entries cut}
--   {"beyond", written}   more bytes than were ever written: the caller reads another journal, nothing was cut
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  journal, partition.trimmed (never backwards). XTRIM comes first: it is allowed where memory is used up, and
-- after a script's first write so is HSET.
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written', 'trimmed')
if head[1] ~= ARGV[1] then return {'fenced'} end
local written, trimmed = tonumber(head[2] or '0'), tonumber(head[3] or '0')
local total = tonumber(ARGV[3])
if total > written then return {'beyond', written} end

if not redis.acl_check_cmd('XTRIM', KEYS[2], 'MINID', ARGV[2]) then return {'denied', 'XTRIM ' .. KEYS[2]} end
if not redis.acl_check_cmd('HSET', KEYS[1], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[1]} end

local cut = redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
if total > trimmed then redis.call('HSET', KEYS[1], 'trimmed', ARGV[3]) end
return {'ok', cut}
