#!lua flags=allow-oom
--[[
Replace one document of the registry, if nobody changed it since it was read. On a full store too:
a credential must be deactivated there as anywhere.

KEYS[1]    documents HASH    applications, credentials or signing keys
KEYS[2]    version   STRING  raised by every change of the registry
KEYS[3]    none      never exists
ARGV[1]    field     number or id
ARGV[2]    expected  the document that the caller read, or '' where there was none
ARGV[3]    document  JSON
Computed   none
Returns    1
Errors     STALE  the document changed since
Cost       O(1)
]]
local documents, version = KEYS[1], KEYS[2]
local field, expected, document = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HGET', documents, field) or ''
if held == document then return 1 end
if held ~= expected then return redis.error_reply('STALE ' .. field) end
redis.call('HSET', documents, field, document)
redis.call('INCR', version)
return 1
