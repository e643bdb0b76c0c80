#!lua flags=allow-oom
--[[
Tell this partition the version of the rules, which attributes definitions name, and what rule trees
name, unless it knows that version or a higher one. On a full store, too: it is what ends the effect
of a deleted definition.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    watch     SET     names of attributes whose change makes a profile dirty
KEYS[3]    named     SET     what rule trees name
KEYS[4]    none      never exists
ARGV[1]    version   integer
ARGV[2]    base      'all' where all that is named follows; 'added' where `add_named` brought it; or
                     the version that must be in force here, to which the names are the difference
ARGV[3]    watched   integer  how many of the names are to be watched: all that are
ARGV[4]    added     integer  how many of the next names are named by rule trees
ARGV[5]    before    integer  the version that this one took the place of; -1: that is not known
ARGV[6..]  name      names to watch, names to add, and (a difference) names to take out
Computed   none
Returns    the version that is in force here now: a lower one than given where the difference is to
           another; -1 where it is lower, but what `add_named` brought may be gone; -2 where it is
           one that the directory has lost in a failover
Errors     none
Cost       O(names), about 0.6 us each; safe to send twice
]]
local rules, watch, named = KEYS[1], KEYS[2], KEYS[3]
local version, base, watched, added = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = tonumber(ARGV[5])
local call = redis.call
local held = call('GET', rules)
if held and tonumber(held) >= tonumber(version) then return held end
-- What followed from rules that are lost would stay, and what they did not name was not noted.
if held and before >= 0 and tonumber(held) > before then return '-2' end
if base == 'added' and call('SISMEMBER', named, '\0!') == 0 then return '-1' end
if base ~= 'all' and base ~= 'added' and base ~= (held or '0') then return held or '0' end
local function change(command, set, first, last)
  for i = first, last, 2000 do
    call(command, set, unpack(ARGV, i, math.min(i + 1999, last)))
  end
end
call('DEL', watch)
change('SADD', watch, 6, 5 + watched)
if base == 'all' then call('DEL', named) end
change('SADD', named, 6 + watched, 5 + watched + added)
change('SREM', named, 6 + watched + added, #ARGV)
call('SREM', named, '\0!')
call('SET', rules, version)
return version
