#!lua flags=allow-oom
--[[
Forget an application whose environments hold nothing.

KEYS[1]    applications HASH    number -> document
KEYS[2]    client_ids   HASH    client id -> number
KEYS[3]    workspaces   HASH    workspace id -> number
KEYS[4]    version      STRING  raised by every change of the registry
KEYS[5]    none         never exists
ARGV[1]    number       integer
ARGV[2]    client_id    string
ARGV[3]    workspace_id integer
Computed   none
Returns    1
Errors     none
Cost       O(1); safe to send twice
]]
local applications, client_ids, workspaces, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local number, client_id, workspace_id = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HDEL', applications, number) == 0 then return 1 end
redis.call('HDEL', client_ids, client_id)
redis.call('HDEL', workspaces, workspace_id)
redis.call('INCR', version)
return 1
