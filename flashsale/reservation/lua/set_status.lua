-- set_status: opens, pauses, resumes or closes a sale. Asking for what already is changes nothing and is no fault.
--
-- KEYS  1 partition  hash    epoch, written
--       2 state      hash    number, status, opens_at, closes_at (ms)
--       3 journal    stream
-- ARGV  1 epoch
--       2 action   open    orders are taken from now on, by Valkey's clock, if the sale had not begun; ends a pause
--                  pause   orders get "paused"; replays are still answered
--                  resume  ends a pause
--                  close   for ever; the window ends now if it had not ended
-- Answers {"ok", status, opens_at, closes_at, journal entry's id or "" if nothing changed}
--   {"unknown"}   no such sale
--   {"closed"}    the sale is closed, and closing is final
--   {"ended", closes_at}   asked to open, but its window has passed
--   {"fenced"} / {"denied", command}
-- All but "ok": nothing was written.
-- Writes  partition.written, state; journals {"kind":"status","sale":n,"status":s,"opens_at":ms,"closes_at":ms}
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local state = redis.call('HMGET', KEYS[2], 'number', 'status', 'opens_at', 'closes_at')
if not state[1] then return {'unknown'} end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local action, status, opens_at, closes_at = ARGV[2], state[2], tonumber(state[3]), tonumber(state[4])

if status == 'closed' then
  if action ~= 'close' then return {'closed'} end
elseif action == 'close' then
  status, closes_at = 'closed', math.min(now, closes_at)
elseif action == 'pause' then
  status = 'paused'
elseif action == 'resume' then
  status = 'open'
elseif action == 'open' then
  if now >= closes_at then return {'ended', closes_at} end
  status, opens_at = 'open', math.min(now, opens_at)
else
  return redis.error_reply('ERR set_status: no such action: ' .. action)
end

local opens_text, closes_text = string.format('%.0f', opens_at), string.format('%.0f', closes_at)
if status == state[2] and opens_text == state[3] and closes_text == state[4] then
  return {'ok', status, opens_at, closes_at, ''}
end

local movement = cjson.encode({kind = 'status', sale = tonumber(state[1]), status = status,
  opens_at = opens_at, closes_at = closes_at})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

for i = 1, 2 do
  if not redis.acl_check_cmd('HSET', KEYS[i], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[i]} end
end
if not redis.acl_check_cmd('XADD', KEYS[3], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[3]} end

local entry = redis.call('XADD', KEYS[3], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
redis.call('HSET', KEYS[2], 'status', status, 'opens_at', opens_text, 'closes_at', closes_text)
return {'ok', status, opens_at, closes_at, entry}
