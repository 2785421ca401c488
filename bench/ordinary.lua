-- The ordinary way: decides one order of 1..n lines, all or nothing. Takes first and gives back on a refusal, which is
-- the fewest calls for an order that is accepted.
--
-- KEYS  1 stock hash SKU -> units   2 quota hash   3 holds hash order id -> hold   4 orders stream
-- ARGV  1 order id   2 hold (fingerprint and deadline)   3 payload of the stream entry
--       then four a line: SKU, quantity, quota (0 = no limit), quota field
-- Answers {"A"} accepted, {"R", hold} the id is used, {"Q", line, used} over the quota, {"S", line, available} sold out.
local prior = redis.call('HGET', KEYS[3], ARGV[1])
if prior then return {'R', prior} end

local function give_back(last_stock, last_quota)
  for i = 4, last_stock, 4 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
  for i = 4, last_quota, 4 do
    if ARGV[i + 2] ~= '0' then redis.call('HINCRBY', KEYS[2], ARGV[i + 3], -ARGV[i + 1]) end
  end
end

for i = 4, #ARGV, 4 do
  local quantity = tonumber(ARGV[i + 1])
  if ARGV[i + 2] ~= '0' then
    local used = redis.call('HINCRBY', KEYS[2], ARGV[i + 3], quantity)
    if used > tonumber(ARGV[i + 2]) then
      give_back(i - 4, i)
      return {'Q', i / 4, used - quantity}
    end
  end
  local left = redis.call('HINCRBY', KEYS[1], ARGV[i], -quantity)
  if left < 0 then
    give_back(i, i)
    return {'S', i / 4, left + quantity}
  end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[4], '*', 'o', ARGV[3])
return {'A'}
