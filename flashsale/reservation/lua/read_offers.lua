-- read_offers: a sale's head and the units of some of its offers in one instant, for pages: it costs what they show,
-- however many offers the sale has. Writes nothing, so it asks for no epoch.
--
-- KEYS  1 partition  hash    version
--       2 state      hash    number, status, opens_at, closes_at (ms), suspended
--       3 stock      hash    SKU index -> available units of the common pool; "index.channel" -> of a guarantee
-- ARGV  fields of the stock, at most 4,000
-- Answers {version, now (ms), number, status, opens_at, closes_at, suspended, {units of each field; "" for what is
--   absent}}; "" for what is absent
if #ARGV > 4000 then return redis.error_reply('ERR at most 4000 fields at once') end -- unpack below
local state = redis.call('HMGET', KEYS[2], 'number', 'status', 'opens_at', 'closes_at', 'suspended')
local time = redis.call('TIME')
local units = #ARGV > 0 and redis.call('HMGET', KEYS[3], unpack(ARGV)) or {}
for i = 1, #ARGV do units[i] = units[i] or '' end
return {redis.call('HGET', KEYS[1], 'version') or '',
  tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000),
  state[1] or '', state[2] or '', state[3] or '', state[4] or '', state[5] or '', units}
