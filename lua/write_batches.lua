#!lua
--[[
Do batches, one after another: their identities, and what they write of attributes. A batch is done
whole or not at all. Of a profile that is new, whose id the caller drew, record and group 0 are
written with it. The latest time of an attribute wins, of equal times what comes later. How many
batches are done at once depends on how much their profiles have: the caller sends the rest again.

KEYS[1]    erasing   SET     profiles being erased
KEYS[2]    rules     STRING  version of the rules in force here
KEYS[3]    none      never exists
ARGV[1]    now       integer  when the batches were received, in microseconds since 1970
ARGV[2]    version   integer  of the rules by which the caller chose the attributes
ARGV[3]    many      integer  attributes of a profile at most
ARGV[4]    size      integer  bytes of their names and values at most
ARGV[5]    deletions integer  deletions that are kept at most, the latest
ARGV[6]    before    integer  deletions and requests from before then are forgotten, microseconds
ARGV[7]    requests  integer  requests of a profile that are remembered, the latest
ARGV[8]    ttl       integer  seconds that they are remembered
ARGV[9..]  repeated: mixed id; `new` or `known`; the custom id that the profile has, if it has
           one, or '' where that does not matter; hash of the request, or ''; 1 where that is to be
           remembered, 0 where it is only looked for; how many identities, and how many attributes,
           follow; each identity's bucket, field, field of the record that shows it (custom_id,
           mpid) or '', and value; each attribute's name, time in microseconds ('' is as of now, and
           after all that is held) and JSON value ('' deletes it)
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:identities:<id>, <tag>:requests:<id>,
           <tag>:identity:<bucket>, <tag>:g:0:<depth>:<prefix>, <tag>:count, <tag>:shape,
           <tag>:watch, <tag>:dirty, <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    {letters, behind}, a letter per batch that was looked at: + done, = done before, L it
           would have too many attributes, S too large ones, E the profile is being erased, R an
           identity or the profile is not what the caller found, M it has no mpid and is to get
           one, W an earlier batch of the profile waits; behind is a digit for each: 1 where the
           profile's contributions have yet to follow from its facts, 2 where its dynamic groups
           have, 3 where both have, else 0
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(ARGV + attributes held), about 30 us a batch; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/head_of"
--- @include "include/owner_of"
--- @include "include/raised"
--- @include "include/rules_differ"
--- @include "include/attribute_text"
--- @include "include/drop_deletions"
--- @include "include/insert_members"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
local erasing, rules = KEYS[1], KEYS[2]
local now, version = ARGV[1], ARGV[2]
local many, size, deletions = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local before, requests_kept, ttl = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local call, match, find = redis.call, string.match, string.find
local differ = rules_differ(rules, version)
if differ then return differ end
local tag = tag_of(erasing)
local some_erasing = call('EXISTS', erasing) == 1
local any_watched = is_watched(tag)
local some_dirty = call('EXISTS', tag .. ':dirty') == 1
-- PERF: one command says that neither is there, as it is mostly.
local some_named = call('EXISTS', tag .. ':named', tag .. ':unsettled') > 0
local some_unsettled = some_named and call('EXISTS', tag .. ':unsettled') == 1
local watched, is_named, waiting, entering = {}, {}, {}, {}
-- Bytes and fields that one call may read: about 1 ms.
local budget = 500000

-- What is held under names, how many have a value, and how many bytes these have.
local function read_held(attributes)
  local fields = call('HGETALL', attributes)
  local held, live, bytes = {}, 0, 0
  for i = 1, #fields, 2 do
    local each = fields[i + 1]
    held[fields[i]] = each
    local gap = find(each, ' ', 1, true)
    if gap then
      live = live + 1
      bytes = bytes + #fields[i] + #each - (find(each, ' ', gap + 1, true) or gap)
    end
    budget = budget - #each - 100
  end
  return held, live, bytes
end

-- The letter of a batch whose identities start at ARGV[first], nil where nothing is in its way.
-- Those of its identities that nobody has are then in `free`.
local function refused(id, is_new, custom_id, hash, record, free, first, stop)
  if waiting[id] then return 'W' end
  if some_erasing and call('SISMEMBER', erasing, id) == 1 then return 'E' end
  if not is_new and not record[1] then return 'R' end
  if custom_id ~= '' and record[2] and record[2] ~= custom_id then return 'R' end
  if hash ~= '' and record[1] then
    local at = call('ZSCORE', tag .. ':requests:' .. id, hash)
    if at and tonumber(at) >= tonumber(before) then return '=' end
  end
  local has_mpid = record[3]
  for i = first, stop, 4 do
    local holder = call('HGET', tag .. ':identity:' .. ARGV[i], ARGV[i + 1])
    if holder and owner_of(holder) ~= id then return 'R' end
    free[i] = not holder
    local shown = ARGV[i + 2]
    if shown == 'custom_id' and record[2] and record[2] ~= ARGV[i + 3] then return 'R' end
    if shown == 'mpid' then has_mpid = true end
  end
  if not has_mpid then return 'M' end
  return nil
end

-- Write identities that the profile does not have yet into their buckets. What the profile lists
-- then, and what its record shows of them, each alternating; and whether it gets an mpid.
local function add_identities(id, record, free, first, stop)
  local listed, shown, got_mpid = {}, {}, false
  for i = first, stop, 4 do
    local field = ARGV[i + 2]
    -- Whoever was faster has given it an mpid: it keeps that one.
    if free[i] and (field ~= 'mpid' or not record[3]) then
      call('HSET', tag .. ':identity:' .. ARGV[i], ARGV[i + 1], id .. now)
      listed[#listed + 1] = ARGV[i + 1]
      listed[#listed + 1] = now
      if field ~= '' then
        shown[#shown + 1] = field
        shown[#shown + 1] = ARGV[i + 3]
        got_mpid = got_mpid or field == 'mpid'
      end
    end
  end
  if #listed > 0 then call('HSET', tag .. ':identities:' .. id, unpack(listed)) end
  return shown, got_mpid
end

local function rules_name(name)
  if is_named[name] == nil then is_named[name] = named_of(tag, {name}) ~= nil end
  return is_named[name]
end

-- What of the attributes at ARGV[first] changes what is held: names and values, alternating.
-- `held` is then as it will be. Also live and bytes then, whether anything is deleted, whether a
-- watched one changes, and those that rules name and whose value becomes another.
local function changed(held, live, bytes, first, stop)
  local fields, deletes, watches, turned = {}, false, false, {}
  for i = first, stop, 3 do
    local name, time, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local was = held[name]
    local held_time = was and match(was, '^%d+')
    local later = held_time and tonumber(held_time) > tonumber(time == '' and now or time)
    if time == '' then
      time = later and held_time or now
      later = false
    end
    if not later then
      local since, old
      if was then since, old = match(was, '^%d+ (%d+) (.*)$') end
      local becomes = time
      if value ~= '' then
        if not old or (old ~= value and attribute_text(old) ~= attribute_text(value)) then
          since = time
        end
        becomes = time .. ' ' .. since .. ' ' .. value
      end
      if becomes ~= was then
        if old then
          live = live - 1
          bytes = bytes - #name - #old
        end
        if value == '' then
          deletes = true
        else
          live = live + 1
          bytes = bytes + #name + #value
        end
        held[name] = becomes
        fields[#fields + 1] = name
        fields[#fields + 1] = becomes
        if any_watched and (old or value ~= '') then
          if watched[name] == nil then watched[name] = is_watched(tag, {name}) end
          watches = watches or watched[name]
        end
        if some_named and (old or '') ~= value then
          if rules_name(name) then turned[#turned + 1] = name end
        end
      end
    end
  end
  return fields, live, bytes, deletes, watches, turned
end

-- Forget deletions that are too old or too many. That takes long where there are many.
local function drop(attributes, held)
  local deleted = {}
  for name, each in pairs(held) do
    if not find(each, ' ', 1, true) then deleted[#deleted + 1] = {name, tonumber(each)} end
  end
  budget = budget - 2500 * #deleted
  drop_deletions(attributes, deleted, tonumber(before), deletions)
end

local function remember(id, hash, is_first)
  local key = tag .. ':requests:' .. id
  call('ZADD', key, now, hash)
  if not is_first then
    call('ZREMRANGEBYSCORE', key, '-inf', '(' .. before)
    call('ZREMRANGEBYRANK', key, 0, -1 - requests_kept)
  end
  call('EXPIRE', key, ttl)
end

local letters, behind = {}, {}
local at = 9
while at <= #ARGV and budget > 0 do
  local id, is_new, hash = ARGV[at], ARGV[at + 1] == 'new', ARGV[at + 3]
  local identities = at + 7
  local attributes = identities + 4 * tonumber(ARGV[at + 5])
  local stop = attributes + 3 * tonumber(ARGV[at + 6])
  local profile = tag .. ':profile:' .. id
  local record = call('HMGET', profile, 'created_at', 'custom_id', 'mpid', 'seq')
  local free = {}
  local letter = refused(id, is_new, ARGV[at + 2], hash, record, free, identities, attributes - 1)
  if not letter then
    local key = tag .. ':attributes:' .. id
    local held, live, bytes = {}, 0, 0
    if record[1] then held, live, bytes = read_held(key) end
    local fields, live_then, bytes_then, deletes, watches, turned =
      changed(held, live, bytes, attributes, stop - 1)
    if live_then > many and live_then > live then
      letter = 'L'
    elseif bytes_then > size and bytes_then > bytes then
      letter = 'S'
    else
      letter = '+'
      local shown, got_mpid = add_identities(id, record, free, identities, attributes - 1)
      if not record[1] then
        shown[#shown + 1] = 'created_at'
        shown[#shown + 1] = now
        entering[#entering + 1] = id
        if some_named and rules_name('\0' .. '0') then turned[#turned + 1] = '\0' .. '0' end
      end
      if #fields > 0 then call('HSET', key, unpack(fields)) end
      if deletes then drop(key, held) end
      watches = watches or (got_mpid and record[1] and any_watched)
      if #fields > 0 or (got_mpid and record[1]) then
        shown[#shown + 1] = 'seq'
        shown[#shown + 1] = raised(record[4], now)
      end
      if #shown > 0 then call('HSET', profile, unpack(shown)) end
      if watches then
        mark_dirty(tag, id, now)
        some_dirty = true
      end
      if #turned > 0 then
        mark_unsettled(tag, {id}, turned, now)
        some_unsettled = true
      end
      if hash ~= '' and ARGV[at + 4] == '1' then remember(id, hash, not record[1]) end
    end
  end
  if letter == 'E' or letter == 'R' or letter == 'M' then waiting[id] = true end
  local flags = 0
  if letter == '+' or letter == '=' then
    if some_dirty and call('ZSCORE', tag .. ':dirty', id) then flags = 1 end
    if some_unsettled and call('ZSCORE', tag .. ':unsettled', id) then flags = flags + 2 end
  end
  letters[#letters + 1] = letter
  behind[#behind + 1] = flags
  at = stop
end
-- Not by the ids themselves: how Lua compares strings is up to the locale of the server.
table.sort(entering, function(a, b) return head_of(a) < head_of(b) end)
insert_members(tag, '0', entering)
return {table.concat(letters), table.concat(behind)}
