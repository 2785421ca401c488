-- reserve: decides a batch of orders of one sale, in their order, and journals what it took.
-- Reads and decides first; after its first write nothing can fail. Idempotent by order id: a batch may be sent again.
--
-- KEYS  1 partition  hash    epoch, version (of the catalogue), written and trimmed (journal bytes)
--       2 state      hash    status, opens_at, closes_at (ms), suspended (",3,17,": SKU indices)
--       3 stock      hash    SKU index -> available units
--       4 quota      hash    shopper hash + SKU index -> units taken
--       5 holds      hash    the order id's last 12 bytes -> hold (below)
--       6 journal    stream  one entry a batch that took something
-- ARGV  1 epoch, as the caller verified it
--       2 catalogue version that priced the batch
--       3 MessagePack {ids, heads, skus, quantities, quotas, fields, counts, differing, sizes}: n orders, m lines
--           ids         n strings: the order id's last 12 bytes
--           heads       n strings: "h", 8 bytes fingerprint of the decoded order, 3 bytes catalogue version
--           skus        m integers: SKU index of each line, order after order; an order names a SKU once
--           quantities  m integers: units of each line, 1 to 10,000
--           quotas      m integers: each line's quota, 0 = no limit
--           fields      a string for each line that has a quota: its field in the quota hash
--           counts      n integers: lines of each order; nil: one line each
--           differing   integers: which orders (1..n) expect another total; they are refused, in the order of checks
--           sizes       n integers, packed once more: bytes of each record; opened only if some are left out
--       4 the n records one after the other, which this script never opens
-- Answers {outcomes, details, now, entry, backlog}
--   outcomes  a letter an order; its details follow in `details`, flat
--             A accepted                          R the id is used: its hold
--             N not open yet   C closed   P paused
--             U suspended: line (1..)             T expected_total differs
--             Q over the quota: line, units used  S sold out: available units of each line
--   now       Valkey's clock, ms
--   entry     id of the journal entry, "" if nothing was taken
--   backlog   bytes of the journal that are not yet trimmed
-- or {"fenced"}, {"stale", version}, {"denied", command}: nothing was decided and nothing written.
-- Writes journal (o: accepted records, w: journal bytes so far), holds, quota, stock, partition.
-- Hold: head, then ms (6 bytes) and sequence (4 bytes) of the journal entry, big-endian; "r" for "h" once released.

local call = redis.call
local partition, holds_key = KEYS[1], KEYS[5]

local known = call('HMGET', partition, 'epoch', 'version', 'written', 'trimmed')
if known[1] ~= ARGV[1] then return {'fenced'} end
if known[2] ~= ARGV[2] then return {'stale', known[2]} end
local state = call('HMGET', KEYS[2], 'status', 'opens_at', 'closes_at', 'suspended')
if not state[1] then return {'fenced'} end

local batch = cmsgpack.unpack(ARGV[3])
local ids, heads, skus, quantities, quotas = batch[1], batch[2], batch[3], batch[4], batch[5]
local fields, counts, differing = batch[6], batch[7], batch[8]
local n, m = #ids, #skus
if m > 2000 then return redis.error_reply('ERR a batch has at most 2000 lines') end -- unpack below: 4,000 values

-- What holds for every order of the batch.
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local shut
if state[1] == 'closed' or now >= tonumber(state[3]) then shut = 'C'
elseif now < tonumber(state[2]) then shut = 'N'
elseif state[1] == 'paused' then shut = 'P' end
local suspended = state[4] and state[4] ~= '' and state[4]
local differs
for i = 1, #differing do
  differs = differs or {}
  differs[differing[i]] = true
end

-- What is known of its SKUs, ids and shoppers.
local left, distinct = {}, {}
for l = 1, m do
  local sku = skus[l]
  if not left[sku] then
    left[sku] = true
    distinct[#distinct + 1] = sku
  end
end
local stock = call('HMGET', KEYS[3], unpack(distinct))
for i = 1, #distinct do left[distinct[i]] = tonumber(stock[i] or 0) end
local before = call('HMGET', holds_key, unpack(ids))
local used = fields[1] and call('HMGET', KEYS[4], unpack(fields))

-- The decisions. Units taken within the batch count at once: `left` by SKU, `taken` by quota field, `seen` by id.
local outcomes, details, seen, taken, touched = {}, {}, {}, {}, {}
local holds, quota_units, accepted, repeats = {}, {}, {}, {}
local nd, nh, nq = 0, 0, 0
local first, field = 1, 1
for i = 1, n do
  local id = ids[i]
  local last = counts and first + counts[i] - 1 or first
  local over, over_used, short
  local f = field
  for l = first, last do
    local quantity, quota = quantities[l], quotas[l]
    if quota > 0 then
      local units = taken[fields[f]] or tonumber(used[f] or 0)
      if units + quantity > quota and not over then over, over_used = l - first + 1, units end
      f = f + 1
    end
    if left[skus[l]] < quantity then short = true end
  end
  local halted
  if suspended then
    for l = first, last do
      if string.find(suspended, ',' .. skus[l] .. ',', 1, true) then halted = l - first + 1 break end
    end
  end

  local outcome
  local again = seen[id] -- twice in this batch: its hold is known when the entry has its id
  if again or before[i] then
    outcome = 'R'
    nd = nd + 1
    details[nd] = before[i]
    if again then repeats[#repeats + 1], details[nd] = { nd, again }, '' end
  elseif shut then outcome = shut
  elseif halted then
    outcome = 'U'
    nd = nd + 1
    details[nd] = halted
  elseif differs and differs[i] then outcome = 'T'
  elseif over then
    outcome = 'Q'
    details[nd + 1], details[nd + 2] = over, over_used
    nd = nd + 2
  elseif short then
    outcome = 'S'
    for l = first, last do
      nd = nd + 1
      details[nd] = left[skus[l]]
    end
  else
    outcome = 'A'
    local head = heads[i]
    for l = first, last do
      local sku, quantity = skus[l], quantities[l]
      left[sku] = left[sku] - quantity
      touched[sku] = true
      if quotas[l] > 0 then
        local name = fields[field]
        local units = (taken[name] or tonumber(used[field] or 0)) + quantity
        taken[name] = units
        quota_units[nq + 1], quota_units[nq + 2] = name, units
        nq = nq + 2
        field = field + 1
      end
    end
    holds[nh + 1], holds[nh + 2] = id, head
    nh = nh + 2
    seen[id] = nh
    accepted[nh / 2] = i
  end
  outcomes[i] = outcome
  first, field = last + 1, f
end

local written, entry = tonumber(known[3] or 0), ''
if nh > 0 then
  if not redis.acl_check_cmd('XADD', KEYS[6], '*', 'o', '') then return {'denied', 'XADD'} end
  for k = 3, 5 do
    if not redis.acl_check_cmd('HSET', KEYS[k], 'x', '1') then return {'denied', 'HSET'} end
  end
  if not redis.acl_check_cmd('HSET', partition, 'x', '1') then return {'denied', 'HSET'} end

  local records = ARGV[4]
  if nh < 2 * n then
    local sizes, kept, from, k = cmsgpack.unpack(batch[9]), {}, 1, 1
    for i = 1, n do
      if accepted[k] == i then
        kept[k] = string.sub(records, from, from + sizes[i] - 1)
        k = k + 1
      end
      from = from + sizes[i]
    end
    records = table.concat(kept)
  end
  written = written + #records
  local total = string.format('%.0f', written)

  entry = call('XADD', KEYS[6], '*', 'o', records, 'w', total)
  local ms, sequence = string.match(entry, '(%d+)-(%d+)')
  local tail = struct.pack('>I6I4', tonumber(ms), tonumber(sequence))
  for k = 2, nh, 2 do holds[k] = holds[k] .. tail end
  for k = 1, #repeats do details[repeats[k][1]] = holds[repeats[k][2]] end
  call('HSET', holds_key, unpack(holds))
  if nq > 0 then call('HSET', KEYS[4], unpack(quota_units)) end
  local rest, k = {}, 0
  for sku in pairs(touched) do
    rest[k + 1], rest[k + 2] = sku, left[sku]
    k = k + 2
  end
  call('HSET', KEYS[3], unpack(rest))
  call('HSET', partition, 'written', total)
end
return {table.concat(outcomes), details, now, entry, written - tonumber(known[4] or 0)}
