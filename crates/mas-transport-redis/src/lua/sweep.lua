-- Takes what is due for redelivery: nacked and returned entries whose time has come, and entries
-- whose holder has died.
-- KEYS: stream, the group's hash, the group's retry set
-- ARGV: group, consumer, the parking consumer, incarnation, lease in ms, most entries, most bytes,
--       mode (0: due entries; 1: dead holders too; 2: dead holders whatever the ids, and reap),
--       idle ms after which a consumer without entries is reaped
-- Answers {'lost'} when group or stream is not what the caller knows, or
-- {'ok', ms until the next entry is due or -1, entries whose body is gone, {{id, count,
-- whether its holder died, fields}…}}.
local stream, hash, retry = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, parked, incarnation = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local lease, limit, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local mode, reap = ARGV[8], tonumber(ARGV[9])

if redis.call('HGET', hash, 'incarnation') ~= incarnation then return {'lost'} end
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then
  local denied = string.find(consumers.err, 'executing the script') or string.find(consumers.err, 'NOPERM') or string.find(consumers.err, 'ACL failure')
  return denied and consumers or {'lost'}
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local out, bytes, gone = {}, 0, 0

-- JUSTID leaves the count alone: the hand-out is recorded when it happens.
local function take(id, count, idle, dead)
  local claimed = redis.call('XCLAIM', stream, group, consumer, idle, id, 'JUSTID')
  local entry = redis.call('XRANGE', stream, id, id)
  if #entry == 0 then
    redis.call('XACK', stream, group, id)
    gone = gone + 1
  elseif #claimed > 0 then
    local fields = entry[1][2]
    for _, part in ipairs(fields) do bytes = bytes + #part end
    out[#out + 1] = {id, count, dead, fields}
  end
end

local due = {}
if limit > 0 then
  due = redis.call('ZRANGEBYSCORE', retry, '-inf', now, 'LIMIT', 0, limit)
end
for _, padded in ipairs(due) do
  if bytes >= most_bytes then break end
  local id = string.gsub(padded, '^0*(%d+)-0*(%d+)$', '%1-%2')
  redis.call('ZREM', retry, padded)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)
  if pending[1] and pending[1][2] == parked then take(id, pending[1][4], 0, 0) end
end

if mode ~= '0' then
  -- What was added less than a lease ago cannot have been held for one, unless the server's clock
  -- was set back or ids are not times: mode 2 looks at all.
  local stop = '+'
  if mode == '1' then stop = string.format('%.0f', math.max(now - lease, 0)) end
  for _, info in ipairs(consumers) do
    local name, pending, idle
    for i = 1, #info, 2 do
      if info[i] == 'name' then name = info[i + 1] end
      if info[i] == 'pending' then pending = info[i + 1] end
      if info[i] == 'idle' then idle = info[i + 1] end
    end
    if name == parked then
      -- The retry set was lost while the entries were not.
      if mode == '2' and pending > redis.call('ZCARD', retry) then
        for _, p in ipairs(redis.call('XPENDING', stream, group, '-', '+', 1000, parked)) do
          local ms, seq = string.match(p[1], '(%d+)-(%d+)')
          local padded = string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
          redis.call('ZADD', retry, 'NX', now, padded)
        end
      end
    elseif pending > 0 then
      local room = limit - #out
      if room > 0 and bytes < most_bytes then
        for _, p in ipairs(redis.call('XPENDING', stream, group, 'IDLE', lease, '-', stop, room, name)) do
          if bytes >= most_bytes then break end
          take(p[1], p[4], lease, 1)
        end
      end
    elseif mode == '2' and idle > reap and name ~= consumer then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    end
  end
end

local next_due = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')
local wait = -1
if next_due[2] then wait = math.max(tonumber(next_due[2]) - now, 0) end
return {'ok', wait, gone, out}
