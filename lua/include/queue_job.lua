-- Queue a job, unless one waits already. Gives the id of the one that waits.
local function queue_job(jobs, id, document)
  local held = redis.call('HGETALL', jobs)
  for i = 2, #held, 2 do
    if string.byte(held[i]) == 113 then return held[i - 1] end
  end
  redis.call('HSET', jobs, id, 'q ' .. document)
  return id
end
