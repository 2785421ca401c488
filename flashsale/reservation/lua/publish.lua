-- publish: puts a catalogue version in force. From this instant reserve.lua refuses every batch priced at another one.
--
-- KEYS  1 partition  hash    epoch, version, written
--       2 journal    stream
-- ARGV  1 epoch   2 catalogue version, not below the one in force; its document lies in the catalogue's hash already
-- Answers {"ok", journal entry's id or "" if it is in force already}
--   {"stale", version}   a newer one is in force: nothing was written
--   {"fenced"} / {"denied", command}: nothing was written
-- Writes  partition.version, partition.written; journals {"kind":"version","version":v}
local head = redis.call('HMGET', KEYS[1], 'epoch', 'written', 'version')
if head[1] ~= ARGV[1] then return {'fenced'} end
local version, present = tonumber(ARGV[2]), tonumber(head[3] or '0')
if version < present then return {'stale', present} end
if version == present then return {'ok', ''} end

local movement = cjson.encode({kind = 'version', version = version})
local written = string.format('%.0f', tonumber(head[2] or '0') + #movement)

if not redis.acl_check_cmd('HSET', KEYS[1], 'f', 'v') then return {'denied', 'HSET ' .. KEYS[1]} end
if not redis.acl_check_cmd('XADD', KEYS[2], '*', 'f', 'v') then return {'denied', 'XADD ' .. KEYS[2]} end

local entry = redis.call('XADD', KEYS[2], '*', 'm', movement, 'w', written)
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'written', written)
return {'ok', entry}
