#!lua
--[[
Replace a group's document, its custom id and its indexes, if nobody changed it since it was read. A
change of `is_active` leaves an intent to install that state in every partition.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    custom_ids HASH    custom id -> number
KEYS[3]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[4]    version    STRING  raised by every change of the directory
KEYS[5..]  index      ZSET    indexes that the group leaves, then those it enters; the last key
                              never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    old_custom_id string, or ''
ARGV[4]    custom_id  string, or ''
ARGV[5]    document   JSON
ARGV[6]    now        integer  microseconds since 1970
ARGV[7]    leaving    integer  how many of the indexes it leaves
ARGV[8]    switched   0 or 1: is_active changes
Computed   none
Returns    the document's new version
Errors     STALE  the document changed since, or is gone
           TAKEN  the custom id is in use
Cost       O(indexes)
]]
--- @include "include/replace_group"
local group, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local new = {
  number = ARGV[1], expected = ARGV[2], old_custom_id = ARGV[3], custom_id = ARGV[4],
  document = ARGV[5], now = ARGV[6], leaving = tonumber(ARGV[7]), switched = ARGV[8] == '1',
}
return replace_group(group, custom_ids, intents, version, new, 5)
