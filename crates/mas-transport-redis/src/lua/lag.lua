-- How far behind a group is.
-- KEYS: stream
-- ARGV: group, most entries to count one by one
-- Answers {waiting, pending}, or nothing when the stream or the group does not exist.
local stream, group, bound = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', stream) == 0 then return false end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local found = {}
  for i = 1, #info, 2 do found[info[i]] = info[i + 1] end
  if found['name'] == group then
    local waiting = found['lag']
    local from = found['last-delivered-id']
    if #redis.call('XRANGE', stream, '-', from, 'COUNT', 1) == 0 then
      -- Everything that is there was published after it, whatever the server has counted.
      waiting = redis.call('XLEN', stream)
    elseif not waiting then
      -- Before version 7, or after entries were deleted one by one: the server cannot tell.
      waiting = 0
      while waiting < bound do
        local page = redis.call('XRANGE', stream, '(' .. from, '+', 'COUNT', 100)
        waiting = waiting + #page
        if #page < 100 then break end
        from = page[#page][1]
      end
    end
    return {waiting, found['pending']}
  end
end
return false
