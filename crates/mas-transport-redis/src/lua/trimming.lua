-- What a script that trims begins with.

-- Ids are two numbers of 64 bits, which Lua's cannot hold: they are compared and counted up as text.
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
local most = '18446744073709551615'
local function following(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if seq == most then return id end
  local digits, i = {string.byte(seq, 1, -1)}, #seq
  while i > 0 and digits[i] == 57 do
    digits[i] = 48
    i = i - 1
  end
  if i == 0 then return ms .. '-1' .. string.char(unpack(digits)) end
  digits[i] = digits[i] + 1
  return ms .. '-' .. string.char(unpack(digits))
end

-- Records from where on each group may have something unsettled, and removes what lies before that
-- of every group. Returns how many entries were removed. The topic's set of groups, the prefix of
-- marker groups, the prefix of the groups' hashes.
local function trim(stream, groups, marker, hashes)
  local registered, moved = {}, {}
  for _, name in ipairs(redis.call('SMEMBERS', groups)) do registered[name] = true end
  local from
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local name, pending, last
    for i = 1, #info, 2 do
      if info[i] == 'name' then name = info[i + 1] end
      if info[i] == 'pending' then pending = info[i + 1] end
      if info[i] == 'last-delivered-id' then last = info[i + 1] end
    end
    if string.sub(name, 1, #marker) ~= marker then
      local open = pending > 0 and redis.call('XPENDING', stream, name)[2] or following(last)
      if registered[name] then
        moved[name] = open
        registered[name] = nil
      end
      if not from or before(open, from) then from = open end
    end
  end
  -- A group that is gone will be made again where it was.
  for name in pairs(registered) do
    local open = redis.call('HGET', hashes .. name, 'from') or '0-0'
    if not from or before(open, from) then from = open end
  end
  if not from then return 0 end
  -- First, because a full server takes it, and what follows it.
  local removed = redis.call('XTRIM', stream, 'MINID', from)
  for name, open in pairs(moved) do redis.call('HSET', hashes .. name, 'from', open) end
  return removed
end
