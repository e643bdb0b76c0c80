#!lua flags=allow-oom
--[[
Forget an application whose environments hold nothing, if nobody changed it since it was read, and
note when, for there are tokens that name it.

KEYS[1]    applications HASH    number -> document
KEYS[2]    client_ids   HASH    client id -> number
KEYS[3]    workspaces   HASH    workspace id -> number
KEYS[4]    deleted      HASH    client id -> when its application was deleted
KEYS[5]    version      STRING  raised by every change of the registry
KEYS[6]    none         never exists
ARGV[1]    number       integer
ARGV[2]    client_id    string
ARGV[3]    workspace_id integer
ARGV[4]    expected     the document that the caller read
ARGV[5]    now          integer  microseconds since 1970
Computed   none
Returns    1
Errors     STALE  the document changed since
Cost       O(1); safe to send twice
]]
local applications, client_ids, workspaces = KEYS[1], KEYS[2], KEYS[3]
local deleted, version = KEYS[4], KEYS[5]
local number, client_id, workspace_id, expected, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local call = redis.call
local held = call('HGET', applications, number)
if not held then return 1 end
if held ~= expected then return redis.error_reply('STALE application ' .. number) end
call('HDEL', applications, number)
call('HDEL', client_ids, client_id)
call('HDEL', workspaces, workspace_id)
call('HSET', deleted, client_id, now)
call('INCR', version)
return 1
