-- set_grant: from here on an agent may order for a recipient, or no more. Said again, it changes nothing.
--
-- KEYS  1 partition  hash    epoch, written
--       2 grants     hash    recipient and agent (20 bytes) -> the grant's id
--       3 journal    stream
-- ARGV  1 epoch   2 the field   3 the grant's id   4 recipient   5 agent   6 "1": from here on, "0": no more
-- Answers {"ok", 1 if something changed, journal entry's id or ""}
--   A grant takes the place of another one of the same two; it ends only under its own id.
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  partition.written, grants; journals {"kind":"grant","grant":id,"recipient":..,"agent":..,"on":bool}
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written')
if head[1] ~= ARGV[1] then return {'fenced'} end

local on = ARGV[6] == '1'
local holds = redis.call('HGET', KEYS[2], ARGV[2]) == ARGV[3]
if on == holds then return {'ok', 0, ''} end

local movement = cjson.encode({kind = 'grant', grant = ARGV[3], recipient = ARGV[4], agent = ARGV[5], on = on})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

if not redis.acl_check_cmd('HSET', KEYS[1], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[1]} end
if on and not redis.acl_check_cmd('HSET', KEYS[2], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[2]} end
if not on and not redis.acl_check_cmd('HDEL', KEYS[2], 'f') then return {'denied', 'HDEL ' .. KEYS[2]} end
if not redis.acl_check_cmd('XADD', KEYS[3], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[3]} end

local entry = redis.call('XADD', KEYS[3], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'written', written)
if on then redis.call('HSET', KEYS[2], ARGV[2], ARGV[3]) else redis.call('HDEL', KEYS[2], ARGV[2]) end
return {'ok', 1, entry}
