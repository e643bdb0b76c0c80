-- Sends prepared requests in turn, and tells what came of it as lines of "name value".
-- Arguments: a file with the requests, each after a line with its length in bytes; a file for the
-- result; what stands in requests that are to be new each time; the first digits of the number that
-- is written in its place (see load.py).

local requests, tails, at, sent = {}, {}, 0, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local length = file:read("*n", 1)
  while length do
    local request = file:read(length)
    local first, last = request:find(arguments[3], 1, true)
    if first then
      tails[#requests + 1] = request:sub(last + 1)
      request = request:sub(1, first - 1) .. arguments[4]
    end
    requests[#requests + 1] = request
    length = file:read("*n", 1)
  end
  file:close()
  result_path = arguments[2]
end

function request()
  at = at % #requests + 1
  sent = sent + 1
  if tails[at] then
    return requests[at] .. string.format("%08x", sent) .. tails[at]
  end
  return requests[at]
end

function setup(thread)
  threads = threads or {}
  threads[#threads + 1] = thread
end

function done(summary, latency)
  local file = assert(io.open(threads[1]:get("result_path"), "w"))
  file:write("requests ", summary.requests, "\n", "duration ", summary.duration, "\n")
  for name, many in pairs(summary.errors) do
    file:write(name, " ", many, "\n")
  end
  for place = 1, #latency do
    local microseconds, many = latency(place)
    if microseconds then
      file:write("latency ", microseconds, " ", many, "\n")
    end
  end
  file:close()
end
