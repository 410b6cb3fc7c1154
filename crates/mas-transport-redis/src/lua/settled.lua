-- Records from where on a group may have something unsettled, after acks: should the group be lost
-- while its stream is not, it is made again there.
-- KEYS: stream, the group's hash
-- ARGV: group, the id behind the highest that was acked
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if pending.err then return 0 end
local from = pending[1] > 0 and pending[2] or ARGV[2]
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local stored = redis.call('HGET', KEYS[2], 'from') or '0-0'
local a1, a2 = string.match(stored, '(%d+)-(%d+)')
local b1, b2 = string.match(from, '(%d+)-(%d+)')
if less(a1, b1) or (a1 == b1 and less(a2, b2)) then
  redis.call('HSET', KEYS[2], 'from', from)
end
return 1
