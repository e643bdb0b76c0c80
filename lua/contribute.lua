#!lua
--[[
What users bring into instances: new, changed, or the end of it. An instance of which something
changes that counts has a new version, and is stale until its members are told. A contribution that
comes after one of later facts is refused, so that doing it twice, late, or at the same time as
others ends the same. Only the first `limit` count, by since and order.

KEYS[1]    rules     STRING  version of the rules in force in this slot
KEYS[2]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2]    limit     integer  how many contributions to an instance count, by these rules
ARGV[3]    now       integer  microseconds since 1970
ARGV[4..]  repeated: instance; number of its definition; shared value; how many items follow; of
           each item mixed id, seq of its facts, since when it has the value, its order, the version
           told to it, and the contribution as JSON, '' for its end
Computed   <tag>:instance:<iid>, <tag>:contributors:<iid>, <tag>:formers:<iid>, <tag>:stale,
           <tag>:ended, <tag>:index:<number>:<bucket>
Returns    {version, rules, stale, letters, seq, ...} per instance: stale is 1 or 0; a letter per
           item: C it counts, N it does not, - it ended, R refused; of these the seqs above theirs.
           Where there is no instance, version and rules are 0
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(items x log contributors), about 10 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/change_contributions"
local rules, version, limit, now = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
return rules_differ(rules, version) or change_contributions(tag_of(rules), version, limit, now, 4)
