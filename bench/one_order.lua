-- The leanest one-order decision: the yardstick of the decision figures. One order, one line, nothing looked at twice.
--
-- KEYS  1 stock (a number)   2 buyers hash shopper -> units   3 seen hash order id -> 1   4 orders stream
-- ARGV  1 order id   2 shopper   3 quantity   4 quota   5 payload of the stream entry
-- Answers 0 accepted, 1 sold out, 2 the id is used, 3 over the quota.
if redis.call('HSETNX', KEYS[3], ARGV[1], '1') == 0 then return 2 end
local quantity = tonumber(ARGV[3])
if redis.call('HINCRBY', KEYS[2], ARGV[2], quantity) > tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[2], ARGV[2], -quantity)
  return 3
end
if redis.call('DECRBY', KEYS[1], quantity) < 0 then
  redis.call('INCRBY', KEYS[1], quantity)
  redis.call('HINCRBY', KEYS[2], ARGV[2], -quantity)
  return 1
end
redis.call('XADD', KEYS[4], '*', 'o', ARGV[5])
return 0
