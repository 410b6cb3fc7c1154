-- Which commands of a member its user may not run. Each is called so that it changes nothing,
-- whatever is there: with an argument that it refuses, or on what does not exist.
-- KEYS: stream, the group's hash, the topic's set of groups, the group's retry set
-- Answers {whether keys are out of reach, commands…}.
local stream, hash, groups, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local none = '!none'
local out, reach = {}, 0
local function try(name, ...)
  local answer = redis.pcall(...)
  local err = type(answer) == 'table' and answer.err
  if err and (string.find(err, 'executing the script') or string.find(err, 'NOPERM') or string.find(err, 'ACL failure')) then
    if string.find(err, 'key') or string.find(err, 'channel') then
      reach = 1
    else
      out[#out + 1] = name
    end
  end
end
try('xadd', 'XADD', stream, 'NOMKSTREAM', none, 'a', 'b')
try('xtrim', 'XTRIM', stream, 'MAXLEN', '-1')
try('xack', 'XACK', stream, none, '0-1')
try('xlen', 'XLEN', stream)
try('xrange', 'XRANGE', stream, '-', '-', 'COUNT', 1)
try('xpending', 'XPENDING', stream, none)
try('xclaim', 'XCLAIM', stream, none, none, 0, '0-1')
try('xreadgroup', 'XREADGROUP', 'GROUP', none, none, 'COUNT', 1, 'STREAMS', stream, '>')
try('xgroup|create', 'XGROUP', 'CREATE', stream, none, none)
try('xgroup|setid', 'XGROUP', 'SETID', stream, none, '0-1')
try('xgroup|delconsumer', 'XGROUP', 'DELCONSUMER', stream, none, none)
try('xinfo|stream', 'XINFO', 'STREAM', stream)
try('xinfo|groups', 'XINFO', 'GROUPS', stream)
try('xinfo|consumers', 'XINFO', 'CONSUMERS', stream, none)
try('exists', 'EXISTS', stream)
try('del', 'DEL', retry .. none)
try('hget', 'HGET', hash, none)
try('hmget', 'HMGET', hash, none)
try('hset', 'HSET', hash, 'a', 'b', 'c')
try('smembers', 'SMEMBERS', groups)
try('sismember', 'SISMEMBER', groups, none)
try('zadd', 'ZADD', retry, 'XX', 0, none)
try('zrem', 'ZREM', retry, none)
try('zcard', 'ZCARD', retry)
try('zrange', 'ZRANGE', retry, 1, 0)
try('zrangebyscore', 'ZRANGEBYSCORE', retry, 1, 0)
try('time', 'TIME')
return {reach, unpack(out)}
