-- reserve: decides a batch of orders of one sale, in their order, and journals what it took.
-- Reads and decides first; after its first write nothing can fail. Idempotent by order id: a batch may be sent again.
--
-- KEYS  1 partition  hash    epoch, version (of the catalogue), written and trimmed (journal bytes)
--       2 state      hash    status, opens_at, closes_at (ms), suspended (",3,17,": SKU indices)
--       3 stock      hash    SKU index -> available units
--       4 quota      hash    shopper hash + SKU index -> units taken
--       5 holds      hash    the order id's last 12 bytes -> hold (below)
--       6 journal    stream  one entry a batch that took something
--       7 returns    hash    SKU index -> ms at which units of open holds may come back; read only, for S alone
-- ARGV  1 epoch, as the caller verified it
--       2 catalogue version that priced the batch
--       n orders of m lines follow; integers are unsigned and big-endian, nothing stands between the values
--       3 ids         the last 12 bytes of each order id
--       4 heads       12 bytes an order: "h", 8 bytes fingerprint of the decoded order, 3 bytes catalogue version
--       5 fields      12 bytes for each line that has a quota: its field in the quota hash
--       6 skus        2 bytes a line, order after order: its SKU index; an order names a SKU once
--       7 quantities  2 bytes a line: its units, 1 to 10,000
--       8 quotas      2 bytes a line: its quota, 0 = no limit; "" if no line has one
--       9 counts      1 byte an order: its lines; "" if each has one
--      10 differing   2 bytes each: which orders (1..n) expect another total; they are refused, in the order of checks
--      11 sizes       4 bytes an order: the bytes of its record; opened only if some are left out
--      12 the n records one after the other, which this script never opens
-- Answers {outcomes, details, now, entry, backlog}
--   outcomes  a letter an order; its details follow in `details`, flat
--             A accepted                          R the id is used: its hold
--             N not open yet   C closed   P paused
--             U suspended: line (1..)             T expected_total differs
--             Q over the quota: line, units used
--             S sold out: available units of each line, then when the first units of a line that is short may come back
--               (ms, not before now; 0: none may)
--   now       Valkey's clock, ms
--   entry     id of the journal entry, "" if nothing was taken
--   backlog   bytes of the journal that are not yet trimmed
-- or {"fenced"}, {"stale", version}, {"denied", command}: nothing was decided and nothing written.
-- Writes journal (o: accepted records, w: journal bytes so far), holds, quota, stock, partition.
-- Hold: head, then ms (6 bytes) and sequence (4 bytes) of the journal entry, big-endian; holds.py says what becomes of it.

local call = redis.call
local partition, holds_key = KEYS[1], KEYS[5]

local known = call('HMGET', partition, 'epoch', 'version', 'written', 'trimmed')
if known[1] ~= ARGV[1] then return {'fenced'} end
if known[2] ~= ARGV[2] then return {'stale', known[2]} end
local state = call('HMGET', KEYS[2], 'status', 'opens_at', 'closes_at', 'suspended')
if not state[1] then return {'fenced'} end

local function open(letter, bytes, packed) -- the values in a table, and how many
  local count = #packed / bytes
  local values = { struct.unpack('>' .. string.rep(letter, count), packed) }
  values[count + 1] = nil -- unpack adds the position behind the last
  return values, count
end
if #ARGV[6] > 4000 then return redis.error_reply('ERR a batch has at most 2000 lines') end -- unpack below: 4,000 values
local ids, n = open('c12', 12, ARGV[3])
local fields = open('c12', 12, ARGV[5])
local skus, m = open('H', 2, ARGV[6])
local quantities = open('H', 2, ARGV[7])
local quotas = ARGV[8] ~= '' and open('H', 2, ARGV[8])
local counts = ARGV[9] ~= '' and open('B', 1, ARGV[9])

-- What holds for every order of the batch.
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local shut
if state[1] == 'closed' or now >= tonumber(state[3]) then shut = 'C'
elseif now < tonumber(state[2]) then shut = 'N'
elseif state[1] == 'paused' then shut = 'P' end
local suspended = state[4] and state[4] ~= '' and state[4]
local differs
if ARGV[10] ~= '' then
  differs = {}
  for _, i in ipairs(open('H', 2, ARGV[10])) do differs[i] = true end
end

-- What is known of its SKUs, ids and shoppers.
local left, asked, distinct = {}, {}, {}
for l = 1, m do
  local sku = skus[l]
  local units = asked[sku]
  if not units then
    units = 0
    distinct[#distinct + 1] = sku
  end
  asked[sku] = units + quantities[l]
end
local stock = call('HMGET', KEYS[3], unpack(distinct))
for i = 1, #distinct do left[distinct[i]] = tonumber(stock[i] or 0) end
local before = call('HMGET', holds_key, unpack(ids))
local used = quotas and call('HMGET', KEYS[4], unpack(fields))

-- The whole batch at once: is there nothing to refuse? Units that fit together fit one order after the other, and to
-- see only that takes a third of the time.
local quota_units, nq = {}, 0 -- what HSET takes: field, units
local whole = not (shut or suspended or differs)
if whole then
  for i = 1, #distinct do whole = whole and asked[distinct[i]] <= left[distinct[i]] end
end
if whole then
  local seen = {}
  for i = 1, n do
    local id = ids[i]
    if before[i] or seen[id] then whole = false break end
    seen[id] = true
  end
end
if whole and quotas then
  local taken, f = {}, 0
  for l = 1, m do
    local quota = quotas[l]
    if quota > 0 then
      f = f + 1
      local name, units = fields[f], used[f]
      units = (taken[name] or units and tonumber(units) or 0) + quantities[l]
      if units > quota then whole = false nq = 0 break end
      taken[name] = units
      quota_units[nq + 1], quota_units[nq + 2] = name, units
      nq = nq + 2
    end
  end
end

-- The decisions. Units taken within the batch count at once: `left` by SKU, `taken` by quota field, `seen` by id.
local outcomes, details, accepted, repeats = {}, {}, {}, {} -- accepted: their places, if some are not
local nd, na = 0, 0
if whole then
  na = n
  outcomes = string.rep('A', n)
  for i = 1, #distinct do left[distinct[i]] = left[distinct[i]] - asked[distinct[i]] end
else
  local seen, taken = {}, {}
  local returns -- SKU index -> ms, read for the first order that is sold out
  local first, field = 1, 0
  for i = 1, n do
    local id, last = ids[i], first
    if counts then last = first + counts[i] - 1 end
    local short, over, over_used, halted
    local f = field
    for l = first, last do
      local quantity, quota = quantities[l], quotas and quotas[l] or 0
      if left[skus[l]] < quantity then short = true end
      if quota > 0 then
        f = f + 1
        local units = taken[fields[f]]
        if not units then
          units = used[f]
          units = units and tonumber(units) or 0
        end
        if units + quantity > quota and not over then over, over_used = l - first + 1, units end
        used[f] = units + quantity
      end
    end
    if suspended then
      for l = first, last do
        if string.find(suspended, ',' .. skus[l] .. ',', 1, true) then halted = l - first + 1 break end
      end
    end

    local outcome, hold, again = 'A', before[i], seen[id]
    if hold or again then -- twice in this batch: its hold is known when the entry has its id
      outcome = 'R'
      nd = nd + 1
      details[nd] = hold
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
      if not returns then
        returns = {}
        local told = call('HMGET', KEYS[7], unpack(distinct))
        for d = 1, #distinct do returns[distinct[d]] = tonumber(told[d] or nil) end
      end
      local back = 0
      for l = first, last do
        local sku = skus[l]
        local units, at = left[sku], returns[sku]
        nd = nd + 1
        details[nd] = units
        if at and units < quantities[l] and (back == 0 or at < back) then back = at end
      end
      nd = nd + 1
      details[nd] = back > 0 and back < now and now or back
    else
      for l = first, last do
        local sku = skus[l]
        left[sku] = left[sku] - quantities[l]
      end
      for q = field + 1, f do
        local name, units = fields[q], used[q]
        taken[name] = units
        quota_units[nq + 1], quota_units[nq + 2] = name, units
        nq = nq + 2
      end
      na = na + 1
      accepted[na] = i
      seen[id] = na
    end
    outcomes[i] = outcome
    first, field = last + 1, f
  end
  outcomes = table.concat(outcomes)
end

local written, entry = tonumber(known[3] or 0), ''
if na > 0 then
  if not redis.acl_check_cmd('XADD', KEYS[6], '*', 'o', '') then return {'denied', 'XADD'} end
  for k = 3, 5 do
    if not redis.acl_check_cmd('HSET', KEYS[k], 'x', '1') then return {'denied', 'HSET'} end
  end
  if not redis.acl_check_cmd('HSET', partition, 'x', '1') then return {'denied', 'HSET'} end

  local records = ARGV[12]
  if na < n then
    local sizes, kept, from, k = open('I4', 4, ARGV[11]), {}, 1, 1
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
  local heads, holds = open('c12', 12, ARGV[4]), {}
  local k = 0
  for place = 1, na do
    local i = accepted[place] or place
    holds[k + 1], holds[k + 2] = ids[i], heads[i] .. tail
    k = k + 2
  end
  for k = 1, #repeats do details[repeats[k][1]] = holds[2 * repeats[k][2]] end
  call('HSET', holds_key, unpack(holds))
  if nq > 0 then call('HSET', KEYS[4], unpack(quota_units, 1, nq)) end
  local rest = {}
  k = 0
  for i = 1, #distinct do
    local sku = distinct[i]
    if left[sku] ~= tonumber(stock[i] or 0) then
      rest[k + 1], rest[k + 2] = sku, left[sku]
      k = k + 2
    end
  end
  call('HSET', KEYS[3], unpack(rest))
  call('HSET', partition, 'written', total)
end
return {outcomes, details, now, entry, written - tonumber(known[4] or 0)}
