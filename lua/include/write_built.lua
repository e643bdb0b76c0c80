-- Note which dynamic groups a job built, ARGV[first..] (number and version of each), and, with
-- `whole`, which job over everything it was. Gives false, and writes nothing, where that is another
-- one by now than `since`: all is to be built anew.
local function write_built(built, since, whole, first)
  local call = redis.call
  if (call('HGET', built, 'whole') or '0') ~= since then return false end
  if whole ~= '' then call('HSET', built, 'whole', whole) end
  for i = first, #ARGV, 2000 do
    call('HSET', built, unpack(ARGV, i, math.min(i + 1999, #ARGV)))
  end
  return true
end
