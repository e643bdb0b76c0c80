#!lua flags=allow-oom
--[[
Note that a job ended, if nobody changed it since it was read, what it built, and forget jobs that
ended long ago. On a full store, too: what makes room may have to go on.

KEYS[1]    jobs      HASH    id -> letter of its state and job
KEYS[2]    built     HASH    number -> version of the rules by which a dynamic group was built;
                             ``whole``: which job over everything was done last
KEYS[3]    rules     STRING  definitions, dynamic groups and settings, JSON
KEYS[4]    none      never exists
ARGV[1]    id        of the job
ARGV[2]    old       the job as it was read
ARGV[3]    new       what it becomes
ARGV[4]    version   integer  version of the rules that list the groups that are built
ARGV[5]    since     integer  the last job over everything when this one was decided on: where that
                     is another now, all is to be built anew, and this job built nothing
ARGV[6]    whole     integer  which job over everything it was, or ''
ARGV[7]    forgotten integer  how many jobs to forget
ARGV[8..]  rest      ids of the jobs to forget; then number and version of each group, in turn
Computed   none
Returns    1
Errors     STALE  the job changed since it was read, or is forgotten
           CONFLICT  other rules are in force: a group may be gone
Cost       O(jobs to forget + groups), 2 to 5 us each
]]
--- @include "include/built_differ"
--- @include "include/write_built"
local jobs, built, rules = KEYS[1], KEYS[2], KEYS[3]
local id, old, new, version, since = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local whole, forgotten = ARGV[6], tonumber(ARGV[7])
local refused = built_differ(jobs, rules, id, old, version)
if refused then return refused end
redis.call('HSET', jobs, id, new)
for i = 8, 7 + forgotten do
  redis.call('HDEL', jobs, ARGV[i])
end
write_built(built, since, whole, 8 + forgotten)
return 1
