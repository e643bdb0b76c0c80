#!lua
--[[
Create an application under a number that the caller reserved, if its client id and workspace are
free. Deletions of applications from before `before` are forgotten.

KEYS[1]    applications HASH    number -> document
KEYS[2]    client_ids   HASH    client id -> number
KEYS[3]    workspaces   HASH    workspace id -> number
KEYS[4]    deleted      HASH    client id -> when its application was deleted
KEYS[5]    version      STRING  raised by every change of the registry
KEYS[6]    none         never exists
ARGV[1]    number       integer
ARGV[2]    client_id    string
ARGV[3]    workspace_id integer
ARGV[4]    document     JSON
ARGV[5]    before       integer  microseconds since 1970: no token is left from before that
Computed   none
Returns    1
Errors     TAKEN  the client id, the workspace or the number is in use, or the client id was the one
           of an application that was deleted since `before`
Cost       O(deleted); safe to send twice
]]
local applications, client_ids, workspaces = KEYS[1], KEYS[2], KEYS[3]
local deleted, version = KEYS[4], KEYS[5]
local number, client_id, workspace_id, document = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local before = tonumber(ARGV[5])
local call = redis.call
local holder = call('HGET', client_ids, client_id)
if holder == number then return 1 end
if holder then return redis.error_reply('TAKEN client id ' .. client_id) end
local deleted_at = call('HGET', deleted, client_id)
if deleted_at and tonumber(deleted_at) >= before then
  return redis.error_reply('TAKEN deleted ' .. client_id)
end
if call('HEXISTS', workspaces, workspace_id) == 1 then
  return redis.error_reply('TAKEN workspace ' .. workspace_id)
end
if call('HEXISTS', applications, number) == 1 then
  return redis.error_reply('TAKEN number ' .. number)
end
local gone = call('HGETALL', deleted)
for i = 1, #gone, 2 do
  if tonumber(gone[i + 1]) < before then call('HDEL', deleted, gone[i]) end
end
call('HSET', applications, number, document)
call('HSET', client_ids, client_id, number)
call('HSET', workspaces, workspace_id, number)
call('INCR', version)
return 1
