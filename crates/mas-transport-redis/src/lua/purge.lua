-- Removes every entry of a topic, for every group; the groups stay.
-- KEYS: stream
-- ARGV: the prefix of marker groups, the prefix of the groups' retry sets
-- Answers how many there were, or -1 when there is no such stream.
local stream, marker, retries = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', stream) == 0 then return -1 end
local count = redis.call('XTRIM', stream, 'MAXLEN', 0)
local state, added = redis.call('XINFO', 'STREAM', stream), nil
for i = 1, #state, 2 do
  if state[i] == 'entries-added' then added = state[i + 1] end
end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name
  for i = 1, #info, 2 do
    if info[i] == 'name' then name = info[i + 1] end
  end
  if string.sub(name, 1, #marker) ~= marker then
    while true do
      local page = redis.call('XPENDING', stream, name, '-', '+', 1000)
      if #page == 0 then break end
      for _, p in ipairs(page) do redis.call('XACK', stream, name, p[1]) end
    end
    redis.call('DEL', retries .. name)
    if added then
      redis.call('XGROUP', 'SETID', stream, name, '$', 'ENTRIESREAD', added)
    else
      redis.call('XGROUP', 'SETID', stream, name, '$')
    end
  end
end
return count
