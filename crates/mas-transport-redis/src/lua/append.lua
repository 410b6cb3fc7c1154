-- Appends an entry to a stream that has a cap.
-- KEYS: stream, the topic's set of groups
-- ARGV: the cap, '1' to drop the oldest entries or '0' to refuse, the prefix of marker groups, the
--       prefix of the groups' hashes, then the fields
-- Answers the entry's id, or an error of code TOPICFULL.
local stream, most, drops = KEYS[1], tonumber(ARGV[1]), ARGV[2] == '1'

-- What every group has settled makes room; a cap that was lowered leaves more than it allows.
if redis.call('XLEN', stream) >= most then
  trim(stream, KEYS[2], ARGV[3], ARGV[4])
  if not drops and redis.call('XLEN', stream) >= most then
    return redis.error_reply('TOPICFULL it keeps ' .. ARGV[1] .. ' entries that some group has not settled')
  end
end
local id = redis.pcall('XADD', stream, '*', unpack(ARGV, 5))
-- The cap as it came: as a number of Lua's it would be written 1e+17, which the server does not read.
if drops and type(id) ~= 'table' then redis.call('XTRIM', stream, 'MAXLEN', ARGV[1]) end
return id
