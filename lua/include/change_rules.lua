-- Replace the rules of an application by those of a new version, if nobody changed them since they
-- were read; leave word that the partitions are to be told, and (with an id) queue a job. Gives the
-- id of the job that waits, '' without one, or an error.
--- @include "include/queue_job"
local function change_rules(rules, installing, jobs, old, new, version, id, document)
  if (redis.call('GET', rules) or '') ~= old then
    return redis.error_reply('STALE the rules changed since they were read')
  end
  redis.call('SET', rules, new)
  redis.call('SET', installing, version)
  if id == '' then return '' end
  return queue_job(jobs, id, document)
end
