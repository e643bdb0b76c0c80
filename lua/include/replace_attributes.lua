-- Make the attributes of a profile exactly those of ARGV[first..]: name, JSON value, repeated.
-- `at` is the time of the change in microseconds: what is held since a later one stays. Where `at`
-- is '-' the change comes after all that is held: it has the time `now`, or one later than that of
-- the attribute. One that is shown as the same text is left as it is, and so is one whose name
-- begins with what stands in `hidden`, between NULs, and a colon. The names of those that changed.
--- @include "include/attribute_text"
--- @include "include/raised"
--- @include "include/drop_deletions"
local function replace_attributes(attributes, at, now, before, limit, hidden, first)
  local match, find = string.match, string.find
  local held = redis.call('HGETALL', attributes)
  local times, values = {}, {}
  for i = 1, #held, 2 do
    local name, each = held[i], held[i + 1]
    local time, value = match(each, '^(%d+) %d+ (.*)$')
    times[name], values[name] = time or each, value
  end
  local moment = tonumber(at == '-' and now or at)
  local function time_of(name)
    local last = times[name] and tonumber(times[name])
    if at == '-' then
      if last and last >= moment then return raised(times[name], now) end
      return now
    end
    if last and last > moment then return nil end
    return at
  end
  local function is_hidden(name)
    local colon = find(name, ':', 1, true)
    return colon and find(hidden, '\0' .. string.sub(name, 1, colon - 1) .. '\0', 1, true)
  end
  local wanted, fields, deleted, changed = {}, {}, {}, {}
  for i = first, #ARGV, 2 do
    local name, value = ARGV[i], ARGV[i + 1]
    wanted[name] = true
    local last_value = values[name]
    if last_value ~= value
      and (not last_value or attribute_text(last_value) ~= attribute_text(value)) then
      local time = time_of(name)
      if time then
        fields[#fields + 1] = name
        fields[#fields + 1] = time .. ' ' .. time .. ' ' .. value
        changed[#changed + 1] = name
        times[name] = nil
      end
    end
  end
  for name, time in pairs(times) do
    if not values[name] then
      deleted[#deleted + 1] = {name, tonumber(time)}
    elseif not wanted[name] and not (hidden ~= '' and is_hidden(name)) then
      local later = time_of(name)
      if later then
        fields[#fields + 1] = name
        fields[#fields + 1] = later
        changed[#changed + 1] = name
        deleted[#deleted + 1] = {name, tonumber(later)}
      end
    end
  end
  for i = 1, #fields, 2000 do
    redis.call('HSET', attributes, unpack(fields, i, math.min(i + 1999, #fields)))
  end
  drop_deletions(attributes, deleted, before, limit)
  return changed
end
