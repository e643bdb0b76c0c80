-- Change contributions to instances, as ARGV[first..] says: each one's id, number, shared value and
-- how many items follow; each item's mixed id, seq, since, order, version told to it, and JSON,
-- which is '' where its contribution ends. No instance comes twice. Gives an answer for each, or an
-- error.
--- @include "include/raised"
--- @include "include/index_key"
local function change_contributions(tag, rules, limit, now, first)
  local call, match, sub = redis.call, string.match, string.sub
  local stale, ended = tag .. ':stale', tag .. ':ended'
  local new_rules = tonumber(rules)
  -- All that is read in few commands, and all checks before the first write.
  local held, names, starts = {}, {}, {}
  local at = first
  while at <= #ARGV do
    local iid, stop = ARGV[at], at + 3 + 6 * tonumber(ARGV[at + 3])
    local fields = {'version', 'rules', 'limit'}
    names[#names + 1] = iid
    for i = at + 4, stop, 6 do
      fields[#fields + 1] = ARGV[i]
      names[#names + 1] = iid .. ARGV[i]
    end
    local header = call('HMGET', tag .. ':instance:' .. iid, unpack(fields))
    if header[1] and tonumber(header[2]) > new_rules then
      return redis.error_reply('STALE ' .. header[2])
    end
    starts[#starts + 1] = at
    held[#held + 1] = header
    at = stop + 1
  end
  local gone = call('ZMSCORE', ended, unpack(names))
  local next_gone, fresh, revived = 0, {'NX'}, {}
  local function change(start, header)
    local iid, number, value = ARGV[start], ARGV[start + 1], ARGV[start + 2]
    local key, contributors = tag .. ':instance:' .. iid, tag .. ':contributors:' .. iid
    local version = header[1]
    local size = version and call('ZCARD', contributors) or 0
    local crowded = size > limit
    local floor, changed = tonumber(version or '0'), false
    local formers, letters, refusals, fields, dropped = {}, {}, {}, {}, {}
    next_gone = next_gone + 1
    local last = gone[next_gone]
    local function counts(order)
      return size <= limit or (call('ZRANK', contributors, order) or limit) < limit
    end
    if version and tonumber(header[2]) < new_rules then
      changed = true
      for _, order in ipairs(call('ZRANGE', contributors, limit, tonumber(header[3]) - 1)) do
        formers[#formers + 1] = sub(order, 17)
      end
      fields = {'rules', rules, 'limit', limit}
      crowded = true
    end
    for n = 1, tonumber(ARGV[start + 3]) do
      local i = start - 2 + 6 * n
      local id, seq, since = ARGV[i], ARGV[i + 1], ARGV[i + 2]
      local order, json = ARGV[i + 3], ARGV[i + 5]
      local seq_number, told = tonumber(seq), tonumber(ARGV[i + 4])
      next_gone = next_gone + 1
      local ended_by = gone[next_gone]
      local held_seq, held_rest, held_order
      if header[3 + n] then
        held_seq, held_rest = match(header[3 + n], '^(%d+) (.*)$')
        local from = match(held_rest, '^%d+ ()')
        held_order = sub(held_rest, from, from + 31)
      end
      if version and told > floor then
        -- A failover lost what was told: what follows must be above it.
        floor, changed = told, true
      end
      if held_seq and tonumber(held_seq) > seq_number then
        letters[n] = 'R'
        refusals[#refusals + 1] = held_seq
      elseif json == '' then
        if not ended_by or tonumber(ended_by) < seq_number then
          call('ZADD', ended, seq, iid .. id)
        end
        if held_seq then
          if counts(held_order) then changed = true end
          dropped[#dropped + 1] = id
          call('ZREM', contributors, held_order)
          size = size - 1
        end
        letters[n] = '-'
      elseif ended_by and tonumber(ended_by) >= seq_number then
        letters[n] = 'R'
        refusals[#refusals + 1] = string.format('%.0f', tonumber(ended_by))
      else
        local rest, after = since .. ' ' .. order .. ' ' .. json, nil
        if not version then
          if last then revived[#revived + 1] = iid end
          version, floor, changed = '0', math.max(tonumber(last or '0'), told), true
          fields = {'number', number, 'value', value, 'rules', rules, 'limit', limit}
          call('ZADD', index_key(tag, number, iid), 0, iid)
        end
        if held_rest == rest then
          after = counts(order)
        else
          local before = held_seq and counts(held_order)
          if held_order ~= order then
            if held_seq then
              call('ZREM', contributors, held_order)
              size = size - 1
            end
            size = size + 1
          end
          if held_order ~= order or sub(held_rest, 1, #since + 1) ~= since .. ' ' then
            call('ZADD', contributors, since, order)
          end
          if size > limit then crowded = true end
          after = counts(order)
          if before or after then changed = true end
          if before and not after then
            formers[#formers + 1] = id
          elseif after and not before and size > limit then
            formers[#formers + 1] = sub(call('ZRANGE', contributors, limit, limit)[1], 17)
          end
        end
        if held_rest ~= rest or held_seq ~= seq then
          fields[#fields + 1] = id
          fields[#fields + 1] = seq .. ' ' .. rest
        end
        if ended_by then revived[#revived + 1] = iid .. id end
        letters[n] = after and 'C' or 'N'
      end
    end
    if changed then
      version = raised(string.format('%.0f', floor), now)
      fields[#fields + 1] = 'version'
      fields[#fields + 1] = version
      fresh[#fresh + 1] = now
      fresh[#fresh + 1] = iid
    end
    if #fields > 0 then call('HSET', key, unpack(fields)) end
    if #dropped > 0 then call('HDEL', key, unpack(dropped)) end
    if size > limit then
      -- By the version at which they fell out: who was told that one, or a later one, knows it.
      for i = 1, #formers do
        call('ZADD', tag .. ':formers:' .. iid, version, formers[i])
      end
    elseif crowded then
      -- All that are left count, and will be told so.
      call('DEL', tag .. ':formers:' .. iid)
    end
    return {version or '0', version and rules or '0', 0, table.concat(letters), unpack(refusals)}
  end
  local answers, iids = {}, {}
  for n = 1, #held do
    answers[n] = change(starts[n], held[n])
    iids[n] = ARGV[starts[n]]
  end
  if #fresh > 1 then call('ZADD', stale, unpack(fresh)) end
  if #revived > 0 then call('ZREM', ended, unpack(revived)) end
  local waiting = call('ZMSCORE', stale, unpack(iids))
  for n = 1, #answers do
    if waiting[n] then answers[n][3] = 1 end
  end
  return answers
end
