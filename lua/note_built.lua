#!lua flags=allow-oom
--[[
Note that a job that is about to end built some dynamic groups, if nobody changed it since it was
read: those that are too many for `end_job`.

KEYS[1]    jobs      HASH    id -> letter of its state and job
KEYS[2]    built     HASH    number -> version of the rules by which a dynamic group was built;
                             ``whole``: which job over everything was done last
KEYS[3]    rules     STRING  definitions, dynamic groups and settings, JSON
KEYS[4]    none      never exists
ARGV[1]    id        of the job
ARGV[2]    old       the job as it was read
ARGV[3]    version   integer  version of the rules that list the groups that are built
ARGV[4]    since     integer  the last job over everything when this one was decided on
ARGV[5..]  group     number and version of each group, in turn
Computed   none
Returns    1; 0 where all is to be built anew, and this job built nothing
Errors     STALE  the job changed since it was read, or is forgotten
           CONFLICT  other rules are in force: a group may be gone
Cost       O(groups), 2 to 5 us each; safe to send twice
]]
--- @include "include/built_differ"
--- @include "include/write_built"
local jobs, built, rules = KEYS[1], KEYS[2], KEYS[3]
local id, old, version, since = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local refused = built_differ(jobs, rules, id, old, version)
if refused then return refused end
return write_built(built, since, '', 5) and 1 or 0
