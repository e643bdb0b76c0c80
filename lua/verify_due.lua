#!lua flags=no-writes
--[[
When rules of profiles are to be looked at again, because time alone may turn them.

KEYS[1]    due       ZSET  mixed id and group -> when time alone may turn the group's rule
KEYS[2]    none      never exists
ARGV[1..]  entry     mixed id and number of a group; at most 1,000
Computed   none
Returns    {microseconds, ...}: as they are held, nil where there is no such entry
Errors     none
Cost       O(entries), about 0.5 us each
]]
return redis.call('ZMSCORE', KEYS[1], unpack(ARGV))
