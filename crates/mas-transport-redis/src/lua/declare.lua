-- Makes an empty topic, or leaves one that is there as it is.
-- KEYS: stream
-- ARGV: the prefix of marker groups, a fresh incarnation
local stream, prefix, fresh = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', stream) == 0 then
  redis.call('XGROUP', 'CREATE', stream, prefix .. fresh, '0', 'MKSTREAM')
else
  redis.call('XLEN', stream)
end
return 1
