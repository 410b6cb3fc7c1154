-- Settlements that could take an entry away from another member: each is done only if the entry
-- still stands under its owner, with its count or, where the answer to a begin was lost, its attempt.
-- KEYS: stream, the group's retry set
-- ARGV: group, the parking consumer, the wake-up channel, then six for each:
--       operation, id, owner, count, attempt, argument
--   B begin: the attempt becomes the count, the lease begins anew
--   E extend: the lease begins anew
--   N nack: available again after the argument in ms, the count stays
--   R return: available at once, the argument becomes the count
-- Answers 1 (done), 0 (no longer the owner's) or 2 (the entry itself is gone, and from the group's
-- table too) for each.
local stream, retry = KEYS[1], KEYS[2]
local group, parked, channel = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local out, wake = {}, nil

-- Sorted by id where they are due at the same time: returned entries keep their order.
local function padded(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

for i = 4, #ARGV, 6 do
  local op, id, owner, arg = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 5]
  local count, attempt = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if pending.err and (string.find(pending.err, 'executing the script') or string.find(pending.err, 'NOPERM') or string.find(pending.err, 'ACL failure')) then
    return pending
  end
  local entry = not pending.err and pending[1]
  local done = 0
  if entry and entry[2] == owner and (entry[4] == count or entry[4] == attempt) then
    local claimed
    if op == 'B' then
      claimed = redis.call('XCLAIM', stream, group, owner, 0, id, 'RETRYCOUNT', attempt, 'JUSTID')
    elseif op == 'E' then
      claimed = redis.call('XCLAIM', stream, group, owner, 0, id, 'JUSTID')
    else
      local delay, due = 0, 0
      if op == 'N' then
        delay = tonumber(arg)
        due = now + delay
        claimed = redis.call('XCLAIM', stream, group, parked, 0, id, 'JUSTID')
      else
        claimed = redis.call('XCLAIM', stream, group, parked, 0, id, 'RETRYCOUNT', arg, 'JUSTID')
      end
      if #claimed > 0 then
        -- After a first write a full server takes this one too.
        redis.call('ZADD', retry, due, padded(id))
        if not wake or delay < wake then wake = delay end
      end
    end
    -- A server of version 7 gives nothing of an entry that was deleted, and forgets it.
    done = #claimed > 0 and 1 or 2
  end
  out[#out + 1] = done
end

-- Not being allowed to wake others must not undo what was settled.
if wake then redis.pcall('PUBLISH', channel, string.format('%.0f', wake)) end
return out
