-- append_events: puts events into the stream of those that wait to be applied, all as one entry.
-- Its answer is the proof that they are kept: a server that flushes its log before it answers has them on disk then.
--
-- KEYS  1 events  stream  fields: 1, 2, ... a body each, as it came; w, bytes ever put in, these included
--       2 state   hash    written and trimmed (bytes), last (the newest entry's id)
-- ARGV  1 most bytes that may wait   2... the bodies, at most 1900
-- Answers {"ok", backlog}   all are in the stream; backlog: bytes that wait now
--   {"full", backlog}       they would not fit under the bound
--   {"denied", command}     neither wrote anything
-- Writes  events, state.written, state.last. Not idempotent: events sent again are there twice, and whoever applies them tells.
local known = redis.call('HMGET', KEYS[2], 'written', 'trimmed')
local written = tonumber(known[1] or '0')
local backlog = written - tonumber(known[2] or '0')
if #ARGV > 1901 then return redis.error_reply('ERR at most 1900 events at once') end -- unpack below: 4,000 values
local size, fields = 0, {}
for i = 2, #ARGV do
  fields[2 * i - 3], fields[2 * i - 2] = i - 1, ARGV[i]
  size = size + #ARGV[i]
end
if backlog + size > tonumber(ARGV[1]) then return {'full', backlog} end

if not redis.acl_check_cmd('XADD', KEYS[1], '*', '1', '') then return {'denied', 'XADD ' .. KEYS[1]} end
if not redis.acl_check_cmd('HSET', KEYS[2], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[2]} end

local total = string.format('%.0f', written + size)
fields[#fields + 1], fields[#fields + 2] = 'w', total
local entry = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('HSET', KEYS[2], 'written', total, 'last', entry)
return {'ok', backlog + size}
