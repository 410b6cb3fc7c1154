-- Moves an entry to a dead-letter or quarantine stream, at once and only if it is still its
-- owner's.
-- KEYS: stream, target stream
-- ARGV: group, id, owner, count, attempt, then the fields to append: with 'verbatim' first they follow the
--       entry's own, with 'instead' they replace them
-- Answers 1 (done), 0 (no longer the owner's), -1 (the entry is gone), -2 (too many fields to be
-- copied here).
local stream, target = KEYS[1], KEYS[2]
local group, id, owner = ARGV[1], ARGV[2], ARGV[3]
local count, attempt = tonumber(ARGV[4]), tonumber(ARGV[5])

local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err and (string.find(pending.err, 'executing the script') or string.find(pending.err, 'NOPERM') or string.find(pending.err, 'ACL failure')) then
  return pending
end
if pending.err or not pending[1] then return 0 end
local there = pending[1][4]
if pending[1][2] ~= owner or (there ~= count and there ~= attempt) then return 0 end

local fields = {}
if ARGV[6] == 'verbatim' then
  local entry = redis.call('XRANGE', stream, id, id)
  if #entry == 0 then
    redis.call('XACK', stream, group, id)
    return -1
  end
  fields = entry[1][2]
end
if #fields + #ARGV > 7000 then return -2 end
for i = 7, #ARGV do fields[#fields + 1] = ARGV[i] end

-- The first write, so that a server which takes no more has done nothing.
redis.call('XADD', target, '*', unpack(fields))
redis.call('XACK', stream, group, id)
return 1
