-- Makes a group, or finds it again, and says what has become of it.
-- KEYS: stream, the group's hash, the topic's set of groups, the group's retry set
-- ARGV: group, lease in ms, '0' or '$', a fresh incarnation, the known incarnation or '',
--       the prefix of marker groups
-- Answers {status, incarnation or detail}: made, ok, lost (the stream is another one), group (the
-- group was gone from a stream that is not), lease or version (refused: nothing was changed).
local stream, hash, groups, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, lease, start, fresh, known, prefix = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local function value(list, name)
  for i = 1, #list, 2 do
    if list[i] == name then return list[i + 1] end
  end
end

-- The last id before another. Ids are two numbers of 64 bits, which Lua's cannot hold.
local function down(digits)
  local out, i = {string.byte(digits, 1, -1)}, #digits
  while i > 0 and out[i] == 48 do
    out[i] = 57
    i = i - 1
  end
  out[i] = out[i] - 1
  return (string.gsub(string.char(unpack(out)), '^0+(%d)', '%1'))
end
local function previous(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if seq ~= '0' then return ms .. '-' .. down(seq) end
  if ms == '0' then return id end
  return down(ms) .. '-18446744073709551615'
end

local stored = redis.call('HMGET', hash, 'version', 'lease', 'incarnation', 'from')
if stored[1] and stored[1] ~= '1' then return {'version', stored[1]} end
if stored[2] and stored[2] ~= lease then return {'lease', stored[2]} end

local incarnation, found = nil, false
if redis.call('EXISTS', stream) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local name = value(info, 'name')
    if string.sub(name, 1, #prefix) == prefix then
      incarnation = string.sub(name, #prefix + 1)
    elseif name == group then
      found = true
    end
  end
end
-- The marker group lives and dies with the stream, so it tells one stream from a later one.
if not incarnation then
  incarnation = fresh
  redis.call('XGROUP', 'CREATE', stream, prefix .. fresh, '0', 'MKSTREAM')
end

local lost = (stored[3] and stored[3] ~= incarnation) or (known ~= '' and known ~= incarnation)
local status = lost and 'lost' or 'ok'
if not found then
  local at, from = '0-0', '0-0'
  if not lost and stored[3] then
    status = 'group'
    from = stored[4] or from
    at = previous(from)
  elseif not lost then
    status = 'made'
    if start == '$' then
      at = value(redis.call('XINFO', 'STREAM', stream), 'last-generated-id')
      local ms, seq = string.match(at, '(%d+)-(%d+)')
      from = at
      if #seq < 15 then from = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1) end
    end
  end
  -- Where the server counts entries, how many were there before the group's first is told to it.
  local info = redis.call('XINFO', 'STREAM', stream)
  local added, read = value(info, 'entries-added'), nil
  if added and at == '0-0' then read = added - value(info, 'length') end
  if added and at == value(info, 'last-generated-id') then read = added end
  if read then
    redis.call('XGROUP', 'CREATE', stream, group, at, 'ENTRIESREAD', read)
  else
    redis.call('XGROUP', 'CREATE', stream, group, at)
  end
  redis.call('DEL', retry)
  redis.call('HSET', hash, 'from', from)
end
-- A full server refuses these, but a member may join a group that is there, to empty it.
if stored[2] ~= lease or stored[3] ~= incarnation then
  redis.call('HSET', hash, 'version', '1', 'lease', lease, 'incarnation', incarnation)
end
if redis.call('SISMEMBER', groups, group) == 0 then redis.call('SADD', groups, group) end
return {status, incarnation}
