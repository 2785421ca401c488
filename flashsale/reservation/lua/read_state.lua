-- read_state: everything about a sale in one instant, for pages, for the audit and for `sale show`. Writes nothing, so
-- it asks for no epoch: the caller compares the one in the answer.
--
-- KEYS  1 partition  hash    epoch, version, written, trimmed
--       2 state      hash    number, status, opens_at, closes_at (ms), suspended
--       3 stock      hash    SKU index -> available units
--       4 supply     hash    SKU index -> supply
--       5 journal    stream; left out where its last id is not wanted: finding it costs a copy of two whole entries
-- ARGV  none
-- Answers {epoch, version, written, trimmed, now (ms), last journal id ("0-0": none),
--   number, status, opens_at, closes_at, suspended,
--   {index, supply, ...}, {index, available, ...}}; "" for what is absent
local head = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'written', 'trimmed')
local state = redis.call('HMGET', KEYS[2], 'number', 'status', 'opens_at', 'closes_at', 'suspended')
local time = redis.call('TIME')

-- The last id ever given out: a trimmed journal may be empty.
local last = '0-0'
if KEYS[5] and redis.call('EXISTS', KEYS[5]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[5])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end

return {head[1] or '', head[2] or '', head[3] or '', head[4] or '',
  tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), last,
  state[1] or '', state[2] or '', state[3] or '', state[4] or '', state[5] or '',
  redis.call('HGETALL', KEYS[4]), redis.call('HGETALL', KEYS[3])}
