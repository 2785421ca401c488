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
--       8 limits     hash    field (13 bytes, limits.py) -> what is used: parcels of a lane's day, an identity's imports
--       9 grants     hash    recipient and agent (20 bytes) -> the grant; read only
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
--      10 marks       3 bytes each: an order (1..n) and why it can't be accepted, bits of: 1 its lane does not carry it,
--                     2 not sold there, 4 another total was expected, 8 more than one order may import; each is its
--                     answer in the order of checks
--      11 sizes       4 bytes an order: the bytes of its record; opened only if some are left out or completed
--      12 the n records one after the other, which this script never opens
--      13 span        6 bytes each: from when until before when (ms) the batch's prices hold; "" for ever
--      14 counters    19 bytes each: a field of the limits (13) and its limit (6); no field twice
--      15 parcels     1 byte an order: which counter (1..) its parcel counts in, 0 = none; "" if none has any
--      16 imports     10 bytes each: an order (2), which counter it counts in (2) and how much (6)
--      17 pools       1 byte a line: the channel whose guarantee it draws on first, 0 = none; "" if none has any. The
--                     record of an order with such a line lacks its last column and newline: this script adds the units
--                     that each line drew
--      18 agents      22 bytes each: an order (2) and the field of its grant (20)
-- Answers {outcomes, details, now, entry, backlog}
--   outcomes  a letter an order; its details follow in `details`, flat
--             A accepted                          R the id is used: its hold
--             N not open yet   C closed   P paused
--             V the agent has no grant            U suspended: line (1..)
--             L its lane does not carry it        X not sold there        T expected_total differs
--             Q over the quota: line, units used  I over the import limit: what is used of the year's
--             S sold out: available units of each line, then when the first units of a line that is short may come back
--               (ms, not before now; 0: none may)
--             F the lane's day is full: parcels held
--   now       Valkey's clock, ms
--   entry     id of the journal entry, "" if nothing was taken
--   backlog   bytes of the journal that are not yet trimmed
-- or {"fenced"}, {"stale", version, now} (another version is in force, or now lies outside the span), {"denied",
-- command}: nothing was decided and nothing written.
-- Writes journal (o: accepted records, w: journal bytes so far), holds, quota, stock, limits, partition.
-- Hold: head, then ms (6 bytes) and sequence (4 bytes) of the journal entry, big-endian; holds.py says what becomes of it.

local call = redis.call
local partition, holds_key = KEYS[1], KEYS[5]

local known = call('HMGET', partition, 'epoch', 'version', 'written', 'trimmed')
if known[1] ~= ARGV[1] then return {'fenced'} end
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if known[2] ~= ARGV[2] then return {'stale', known[2], now} end
if ARGV[13] ~= '' then
  local from, to = struct.unpack('>I6I6', ARGV[13])
  if now < from or now >= to then return {'stale', known[2], now} end
end
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
local parcels = ARGV[15] ~= '' and open('B', 1, ARGV[15])
local pools = ARGV[17] ~= '' and open('B', 1, ARGV[17])

-- What holds for every order of the batch.
local shut
if state[1] == 'closed' or now >= tonumber(state[3]) then shut = 'C'
elseif now < tonumber(state[2]) then shut = 'N'
elseif state[1] == 'paused' then shut = 'P' end
local suspended = state[4] and state[4] ~= '' and state[4]
local marks
if ARGV[10] ~= '' then
  marks = {}
  for at = 1, #ARGV[10], 3 do
    local i, bits = struct.unpack('>HB', ARGV[10], at)
    marks[i] = bits
  end
end
local granted -- order -> whether its agent may order; nil for orders of shoppers
if ARGV[18] ~= '' then
  granted = {}
  for at = 1, #ARGV[18], 22 do
    local i, field = struct.unpack('>Hc20', ARGV[18], at)
    granted[i] = call('HEXISTS', KEYS[9], field) == 1
  end
end
local imports -- order -> {counter, amount}
if ARGV[16] ~= '' then
  imports = {}
  for at = 1, #ARGV[16], 10 do
    local i, counter, amount = struct.unpack('>HHI6', ARGV[16], at)
    imports[i] = {counter, amount}
  end
end
local counters, limits, counted, first_counted = {}, {}, {}, {} -- fields; the most of each; what is used, and was
for at = 1, #ARGV[14], 19 do
  local field, limit = struct.unpack('>c13I6', ARGV[14], at)
  counters[#counters + 1] = field
  limits[#counters] = limit
end
if #counters > 0 then
  if #counters > 2000 then return redis.error_reply('ERR a batch has at most 2000 counters') end
  local found = call('HMGET', KEYS[8], unpack(counters))
  for c = 1, #counters do counted[c], first_counted[c] = tonumber(found[c] or 0), tonumber(found[c] or 0) end
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
local guarantees, guaranteed, first_guaranteed = {}, {}, {} -- fields of the stock; what is left; what was
local drawn = {} -- line -> units from its guarantee
local pool_of = {} -- line -> its guarantee's field; none: the line has the common pool alone
if pools then
  for l = 1, m do
    if pools[l] > 0 then
      local pool = skus[l] .. '.' .. pools[l]
      pool_of[l] = pool
      if not guaranteed[pool] then
        guarantees[#guarantees + 1] = pool
        guaranteed[pool] = 0
      end
    end
  end
  local found = call('HMGET', KEYS[3], unpack(guarantees))
  for i = 1, #guarantees do
    guaranteed[guarantees[i]] = tonumber(found[i] or 0)
    first_guaranteed[guarantees[i]] = guaranteed[guarantees[i]]
  end
end
local function draw(l) -- takes a line's units: from its guarantee first, then from the common pool
  local quantity, pool = quantities[l], pool_of[l]
  if pool then
    local units = math.min(quantity, guaranteed[pool])
    guaranteed[pool], drawn[l] = guaranteed[pool] - units, units
    quantity = quantity - units
  end
  left[skus[l]] = left[skus[l]] - quantity
end
local before = call('HMGET', holds_key, unpack(ids))
local used = quotas and call('HMGET', KEYS[4], unpack(fields))

-- The whole batch at once: is there nothing to refuse? Units that fit together fit one order after the other, and to
-- see only that takes a third of the time.
local quota_units, nq = {}, 0 -- what HSET takes: field, units
local whole = not (shut or suspended or marks or granted or imports)
if whole and not pools then
  for i = 1, #distinct do whole = whole and asked[distinct[i]] <= left[distinct[i]] end
elseif whole then -- not a line may lack anything even if no other line finds a guarantee
  local short = {}
  for l = 1, m do
    local from = pool_of[l] or skus[l]
    short[from] = (short[from] or 0) + quantities[l]
  end
  local common = {}
  for i = 1, #distinct do common[distinct[i]] = short[distinct[i]] or 0 end
  for i = 1, #guarantees do
    local pool = guarantees[i]
    local sku = tonumber(string.match(pool, '^%d+'))
    common[sku] = common[sku] + math.max(0, short[pool] - guaranteed[pool])
  end
  for i = 1, #distinct do whole = whole and common[distinct[i]] <= left[distinct[i]] end
end
local shipped = {} -- counter -> parcels of the batch
if whole and parcels then
  for i = 1, n do
    local c = parcels[i]
    if c > 0 then shipped[c] = (shipped[c] or 0) + 1 end
  end
  for c, units in pairs(shipped) do
    if counted[c] + units > limits[c] then whole = false end
  end
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
  for c, units in pairs(shipped) do counted[c] = counted[c] + units end
  if pools then
    for l = 1, m do draw(l) end
  else
    for i = 1, #distinct do left[distinct[i]] = left[distinct[i]] - asked[distinct[i]] end
  end
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
      if left[skus[l]] + (pool_of[l] and guaranteed[pool_of[l]] or 0) < quantity then short = true end
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
    local mark, import, parcel = marks and marks[i] or 0, imports and imports[i], parcels and parcels[i] or 0
    if hold or again then -- twice in this batch: its hold is known when the entry has its id
      outcome = 'R'
      nd = nd + 1
      details[nd] = hold
      if again then repeats[#repeats + 1], details[nd] = { nd, again }, '' end
    elseif granted and granted[i] == false then outcome = 'V'
    elseif shut then outcome = shut
    elseif halted then
      outcome = 'U'
      nd = nd + 1
      details[nd] = halted
    elseif mark % 2 == 1 then outcome = 'L'
    elseif math.floor(mark / 2) % 2 == 1 then outcome = 'X'
    elseif math.floor(mark / 4) % 2 == 1 then outcome = 'T'
    elseif over then
      outcome = 'Q'
      details[nd + 1], details[nd + 2] = over, over_used
      nd = nd + 2
    elseif mark >= 8 or import and counted[import[1]] + import[2] > limits[import[1]] then
      outcome = 'I'
      nd = nd + 1
      details[nd] = import and counted[import[1]] or 0
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
        local units, at = left[sku] + (pool_of[l] and guaranteed[pool_of[l]] or 0), returns[sku]
        nd = nd + 1
        details[nd] = units
        if at and units < quantities[l] and (back == 0 or at < back) then back = at end
      end
      nd = nd + 1
      details[nd] = back > 0 and back < now and now or back
    elseif parcel > 0 and counted[parcel] >= limits[parcel] then
      outcome = 'F'
      nd = nd + 1
      details[nd] = counted[parcel]
    else
      for l = first, last do draw(l) end
      if parcel > 0 then counted[parcel] = counted[parcel] + 1 end
      if import then counted[import[1]] = counted[import[1]] + import[2] end
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
  if #counters > 0 and not redis.acl_check_cmd('HSET', KEYS[8], 'x', '1') then return {'denied', 'HSET'} end

  local records = ARGV[12]
  if na < n or pools then
    local sizes, kept, from, k, l = open('I4', 4, ARGV[11]), {}, 1, 1, 1
    for i = 1, n do
      local last = counts and l + counts[i] - 1 or l
      if na == n or accepted[k] == i then
        kept[k] = string.sub(records, from, from + sizes[i] - 1)
        if pools then
          local pooled, units = false, {}
          for line = l, last do
            pooled = pooled or pool_of[line]
            units[#units + 1] = drawn[line] or 0
          end
          if pooled then kept[k] = kept[k] .. '{' .. table.concat(units, ',') .. '}\n' end
        end
        k = k + 1
      end
      from, l = from + sizes[i], last + 1
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
  for i = 1, #guarantees do
    local pool = guarantees[i]
    if guaranteed[pool] ~= first_guaranteed[pool] then
      rest[k + 1], rest[k + 2] = pool, guaranteed[pool]
      k = k + 2
    end
  end
  for first = 1, k, 4000 do call('HSET', KEYS[3], unpack(rest, first, math.min(first + 3999, k))) end
  local used_now = {}
  k = 0
  for c = 1, #counters do
    if counted[c] ~= first_counted[c] then
      used_now[k + 1], used_now[k + 2] = counters[c], string.format('%.0f', counted[c])
      k = k + 2
    end
  end
  if k > 0 then call('HSET', KEYS[8], unpack(used_now)) end
  call('HSET', partition, 'written', total)
end
return {outcomes, details, now, entry, written - tonumber(known[4] or 0)}
