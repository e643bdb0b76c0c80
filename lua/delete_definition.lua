#!lua flags=allow-oom
--[[
Replace the rules of an application by those without a definition, as `replace_rules` does; on a
full store, too: what follows from a definition goes only after it.

KEYS[1]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[2]    installing STRING  version that partitions are to be told of
KEYS[3]    jobs       HASH    id -> letter of its state and job
KEYS[4]    built      HASH    which job over everything was wanted last, among others
KEYS[5]    none       never exists
ARGV[1]    old        the rules as they were read
ARGV[2]    new        the rules of the new version
ARGV[3]    version    integer  the new version
ARGV[4]    id         of the job to queue, or ''
ARGV[5]    document   JSON of that job
ARGV[6]    whole      0 or 1: the job is over everything
Computed   none
Returns    the id of the job that waits: this one, or another that waited already; '' without one
Errors     STALE  the rules changed since they were read
Cost       O(size of the rules): 0.1 ms for ten definitions of ten attributes, 7 ms for a hundred of
           a hundred, which settings allow; O(jobs); safe to send twice
]]
--- @include "include/change_rules"
--- @include "include/want_whole"
local rules, installing, jobs, built = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local old, new, version, id, document = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local whole = ARGV[6] == '1'
local waits = change_rules(rules, installing, jobs, old, new, version, id, document)
if type(waits) == 'string' and whole then want_whole(built, version) end
return waits
