-- Looks for entries that were trimmed or deleted before the group was given them, and moves the
-- group past the hole so that it is told of once.
-- KEYS: stream
-- ARGV: group
-- Answers how many are gone; -1 when some are and the server cannot tell how many (before version
-- 7); 0 when none are, as far as can be seen.
local stream, group = KEYS[1], ARGV[1]
local function fields(list)
  local out = {}
  for i = 1, #list, 2 do out[list[i]] = list[i + 1] end
  return out
end
-- Ids are two numbers of 64 bits, which Lua's cannot hold.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if a1 ~= b1 then return less(a1, b1) end
  return less(a2, b2)
end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then return 0 end
local mine
for _, info in ipairs(groups) do
  local found = fields(info)
  if found['name'] == group then mine = found end
end
if not mine then return 0 end
local at, read = mine['last-delivered-id'], mine['entries-read']
local info = fields(redis.call('XINFO', 'STREAM', stream))
local length, added, last = info['length'], info['entries-added'], info['last-generated-id']
-- Nothing is waiting, or something that was delivered is still there: what is removed from the
-- front lies before it.
if not before(at, last) then return 0 end
if length > 0 and not before(at, info['first-entry'][1]) then return 0 end

local lost = 0
if added and read then
  lost = added - length - read
elseif length == 0 then
  lost = -1
end
if lost == 0 then return 0 end
if length == 0 then at = last end
if added then
  redis.call('XGROUP', 'SETID', stream, group, at, 'ENTRIESREAD', added - length)
else
  redis.call('XGROUP', 'SETID', stream, group, at)
end
return lost
